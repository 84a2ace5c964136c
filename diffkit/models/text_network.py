"""The network of text-conditional training: a UNet2DConditionModel in DeepFloyd IF's layout, with its text encoder.

Captions are numbered, so that the loop treats them as it treats classes: the empty caption is the null class. What is
written is a pipeline that stock `IFPipeline.from_pretrained` loads, and `models/deepfloyd.py`. Source: Imagen,
arXiv:2205.11487; the learned variance: arXiv:2102.09672.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffkit.errors import DataError, UsageError
from diffkit.models import meta as meta_file
from diffkit.models.meta import RunMeta
from diffkit.models.network import DDPMNetwork, whole
from diffkit.models.presets import padded_size, text_unet_arguments
from diffkit.models.text_encoder import embeddings, make_encoder, tokenize, word_tokenizer
from diffkit.models.weights import quiet_libraries
from diffkit.recipes.schema import ModelSpec

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from transformers import T5EncoderModel, T5Tokenizer

    from diffkit.data.loader import Batch

_TABLE_BYTES = 1 << 29  # a frozen encoder's embeddings are kept up to this size, else made anew for every batch


class TextNetwork(nn.Module):
    """A text-conditional UNet and its captions.

    Args:
        unet: A UNet2DConditionModel with twice as many output as input channels.
        encoder: A T5EncoderModel.
        tokenizer: Its tokenizer.
        captions: The distinct captions of the dataset, the empty one left out; caption k is label k.
        trained: Whether the encoder learns, too. A frozen one is never called in training: its embeddings are made
            once, where they fit into memory.
    """

    conditioning = "text"
    class_embedding = None

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: T5EncoderModel,
        tokenizer: T5Tokenizer,
        captions: Sequence[str],
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.unet, self.encoder, self.tokenizer = unet, encoder, tokenizer
        self.captions = list(captions)
        self.trained = trained
        self._labels = {caption: k for k, caption in enumerate(self.captions)} | {"": len(self.captions)}
        self._tokens: tuple[Tensor, Tensor] | None = None
        self._table: Tensor | None = None
        encoder.requires_grad_(trained)

    @property
    def num_classes(self) -> int:
        return len(self.captions)

    @property
    def null_class(self) -> int:
        return len(self.captions)

    @property
    def channels(self) -> int:
        return int(self.unet.config.in_channels)

    def labels_of(self, batch: Batch) -> Tensor:
        """Return the numbers of a batch's captions, (B,) int64 on the images' device.

        Raises:
            DataError: A caption that the dataset did not have when it was opened.
        """
        numbers = [self.label(caption) for caption in batch.captions or ()]
        return torch.tensor(numbers, dtype=torch.long).to(batch.images.device, non_blocking=True)

    def label(self, caption: str) -> int:
        """Return a caption's number; raises as `labels_of`."""
        if caption not in self._labels:
            raise DataError(f"the caption {caption!r} was not there when the dataset was opened")
        return self._labels[caption]

    def forward(self, x: Tensor, t: Tensor | int, labels: Tensor | None = None) -> Tensor:
        """Predict the image (or noise) and the variance.

        Args:
            x: (B, C, H, W).
            t: Timestep, shape () or (B,).
            labels: (B,) int64 in 0..num_classes; None means the empty caption for every row.

        Returns:
            (B, 2 C, H, W).
        """
        if labels is None:
            labels = torch.full((x.shape[0],), self.null_class, dtype=torch.long, device=x.device)
        return self.unet(x, t, encoder_hidden_states=self.embed(labels), return_dict=False)[0]

    def embed(self, labels: Tensor) -> Tensor:
        """Return the embeddings (B, 77, D) of captions by number, with a gradient where the encoder is trained."""
        if not self.trained and self._fits():
            return self._kept(labels.device)[labels]
        rows, places = torch.unique(labels, return_inverse=True)
        ids, mask = (part.to(labels.device)[rows] for part in self._numbered())
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self.encoder(ids, attention_mask=mask)[0][places]

    def _numbered(self) -> tuple[Tensor, Tensor]:
        if self._tokens is None:
            self._tokens = tokenize(self.tokenizer, [*self.captions, ""])
        return self._tokens

    def _fits(self) -> bool:
        ids = self._numbered()[0]
        return ids.numel() * int(self.encoder.config.d_model) * 4 <= _TABLE_BYTES

    def _kept(self, device: torch.device) -> Tensor:
        # Made at the first call: a resumed run has put its own encoder back by then. And on the CPU, as `PromptEncoder`
        # does there, so that both see the same bits.
        if self._table is None:
            self._table = embeddings(self._encoder_on_cpu(), *self._numbered())
        if self._table.device != device:
            self._table = self._table.to(device)
        return self._table

    def _encoder_on_cpu(self) -> T5EncoderModel:
        """A copy of the encoder; of one whose weights are spread over several processes, a whole one."""
        weights = {name: whole(value).cpu() for name, value in self.encoder.state_dict().items()}
        with torch.random.fork_rng(devices=[]):  # the copy's own first weights are of no use
            encoder = type(self.encoder)(self.encoder.config).eval()
        encoder.load_state_dict(weights)
        return encoder

    def hollow(self) -> TextNetwork:
        """Return a network of the same shape on the CPU, for weights that are gathered from several processes."""
        unet = type(self.unet).from_config(self.unet.config)
        encoder = type(self.encoder)(self.encoder.config).eval()
        return TextNetwork(unet, encoder, self.tokenizer, self.captions, self.trained)


TrainedNetwork = DDPMNetwork | TextNetwork  # what training optimizes


def build_text_network(spec: ModelSpec, *, shape: tuple[int, int, int], captions: Sequence[str]) -> TextNetwork:
    """Make a network with random weights from a preset, with a tokenizer that knows the captions' words.

    Args:
        spec: Preset, overrides, and the text encoder's size.
        shape: (3, H, W) of the images, H == W, a size that the network can halve at every level.
        captions: The captions of all images, repetitions included; empty ones are allowed.

    Raises:
        UsageError: Unknown preset or override, arguments that do not fit together, a size that cannot be halved, grey
            images, or no captions.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    channels, height, width = shape
    if height != width:
        raise UsageError(f"images of {height} x {width} pixels: the network takes squares")
    if channels != 3:
        raise UsageError(
            f"model.text is {spec.text!r}, whose layout takes RGB images; these have {channels} channel",
            "Set dataset.channels to 3.",
        )
    distinct = sorted(set(captions) - {""})
    if not distinct:
        raise UsageError(
            f"model.text is {spec.text!r}, but the dataset has no captions",
            "Name the column with dataset.caption_column, put a metadata.jsonl with captions beside the images, or set "
            "model.text to none.",
        )
    arguments = text_unet_arguments(spec.preset, spec.overrides)
    size = padded_size(arguments, height)
    if size != height:
        raise UsageError(
            f"{spec.preset} halves its images; dataset.resolution={height} cannot be halved that often", f"Use {size}."
        )
    tokenizer = word_tokenizer(captions)
    try:
        encoder = make_encoder(tokenizer, spec.text_width, spec.text_layers)
        unet = UNet2DConditionModel(
            sample_size=size, in_channels=channels, out_channels=2 * channels, encoder_hid_dim=spec.text_width,
            **arguments,
        )  # fmt: skip
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        raise UsageError(f"model.preset {spec.preset} with model.overrides {spec.overrides}: {error}") from None
    return TextNetwork(unet, encoder, tokenizer, distinct, spec.text_encoder == "trained")


def save_text_pipeline(folder: Path, network: TextNetwork, scheduler: SchedulerMixin, meta: RunMeta) -> None:
    """Write a pipeline in DeepFloyd IF's layout, without safety checker and watermark.

    Args:
        folder: Made if it does not exist; holds model_index.json, unet/, text_encoder/, tokenizer/, scheduler/ and
            diffkit.json.
        network: The network.
        scheduler: A DDPMScheduler of learned_range variance.
        meta: What diffusers' files do not say.
    """
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    network.unet.save_pretrained(folder / "unet")
    with quiet_libraries():
        network.encoder.save_pretrained(folder / "text_encoder")
        network.tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "IFPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / meta_file.FILE).write_text(meta.to_json(), encoding="utf-8")

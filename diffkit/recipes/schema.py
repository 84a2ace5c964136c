"""What a recipe can say: the typed fields with their defaults, and the rules between them.

This is the one list of training options: the command line's flags, the YAML files and the Python API all set these
fields. It holds no loading (that is `reading.py`) and imports no torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

DIFFUSION = ("epsilon", "sample", "v_prediction")  # objectives of a noise schedule; the others have none
ONE_STEP = ("one_step", "pure_noise")  # objectives of networks that answer in one call


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


_Beta = Annotated[float, Field(ge=0, lt=1)]


class DatasetSpec(_Strict):
    """What to train on and how its images are prepared."""

    name: str = Field(
        "digits", description="A registered name (digits), a Hub id, an image folder or a parquet folder."
    )
    config: str | None = Field(None, description="The Hub dataset's configuration (subset).")
    split: str = Field("train", description="The split to read.")
    revision: str | None = Field(None, description="The Hub dataset's revision.")
    resolution: PositiveInt = Field(64, description="Height and width of the training images, pixels.")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; inferred from the images when left out.")
    image_column: str | None = Field(None, description="The column with the images; found when left out.")
    class_column: str | None = Field(None, description="The column with the classes; found when left out.")
    caption_column: str | None = Field(None, description="The column with the captions; found when left out.")
    background: str = Field("white", description="Colour under transparent pixels: a name or #rrggbb.")
    crop: Literal["center", "random"] = Field("center", description="Where the square is cut out.")
    normalize: Literal["symmetric", "unit", "standard"] = Field(
        "symmetric",
        description="Range in which the network sees pixels: symmetric [-1, 1]; unit [0, 1]; standard: mean 0 and "
        "variance 1 in each channel.",
    )
    flip: bool = Field(False, description="Mirror half of the images, left to right.")
    validation: FiniteFloat = Field(0.0, ge=0.0, lt=1.0, description="Fraction held out for the validation loss.")
    limit: PositiveInt | None = Field(None, description="Use the first N images only.")
    streaming: bool = Field(False, description="Stream a Hub dataset that fits on no disk.")
    cache: Literal["auto", "memory", "disk"] = Field("auto", description="Decode once into memory, or read from disk.")
    workers: NonNegativeInt = Field(2, description="Processes that decode, where images come from disk.")
    on_error: Literal["error", "skip"] = Field("error", description="What to do with an image that cannot be read.")


class ModelSpec(_Strict):
    """The network."""

    preset: str = Field("course28", description="A row of `diffkit.models.presets`.")
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of the preset's network (UNet2DModel; with text UNet2DConditionModel) to replace.",
    )
    class_conditioning: Literal["none", "embedding", "concat"] = Field(
        "none", description="embedding: added to the time embedding; concat: as channels of the input."
    )
    class_embed_dim: PositiveInt = Field(4, description="Channels of the class embedding (concat).")
    text: Literal["none", "t5"] = Field(
        "none", description="t5: draw from captions, in DeepFloyd IF's layout (preset if32)."
    )
    text_encoder: Literal["frozen", "trained"] = Field(
        "frozen", description="Whether the text encoder keeps its random weights or learns, too."
    )
    text_width: int = Field(64, ge=16, multiple_of=16, description="Channels of the text embeddings.")
    text_layers: PositiveInt = Field(2, description="Layers of the text encoder.")
    attention: Literal["auto", "sdpa", "plain", "blocked"] = Field(
        "auto", description="Attention kernel; auto: by device and head."
    )
    pretrained: str | None = Field(None, description="A Hub id or folder to start from (fine-tuning).")
    revision: str | None = Field(None, description="Its revision.")
    variant: str | None = Field(None, description="Its weight variant, for example fp16.")
    freeze: list[str] = Field(default_factory=list, description="Parameter-name prefixes that stay as they are.")


class NoiseSpec(_Strict):
    """The forward process and what the network predicts."""

    prediction: str = Field(
        "epsilon",
        description="A training objective: epsilon, sample, v_prediction, flow, one_step, pure_noise or linear_mix.",
    )
    loss: Literal["mse", "mae", "huber"] = Field(
        "mse", description="Of what is predicted: mean squared, mean absolute, or Huber's error."
    )
    huber_delta: FiniteFloat = Field(1.0, gt=0, description="huber: squared up to this error, absolute beyond.")
    times: str = Field(
        "uniform", description="flow, linear_mix: uniform, or logit_normal:MEAN,STD (0,1): more in the middle."
    )
    distribution: Literal["normal", "uniform"] = Field(
        "normal", description="Of the noise; uniform in [0, 1] for linear_mix alone."
    )
    schedule: str = Field("linear", description="A noise schedule, with its arguments: offset_cosine:0.95,0.02.")
    timesteps: int = Field(1000, ge=2, description="T, the number of noise levels.")
    snr_gamma: FiniteFloat | None = Field(
        None, gt=0, description="Min-SNR weighting's gamma (5 in the paper); none: off."
    )
    sigma: FiniteFloat = Field(
        0.5, gt=0, description="one_step: the fixed noise level, in the range of dataset.normalize."
    )
    variance: Literal["fixed", "learned"] = Field(
        "fixed", description="learned: the network also predicts the variance of each step (always so with model.text)."
    )
    vlb_weight: FiniteFloat | None = Field(
        None, ge=0, description="Weight of the variational bound, which trains the variance; none: timesteps / 1000."
    )
    timestep_bias: str | None = Field(
        None, description="LOW-HIGH or LOW-HIGH:P: with probability P (0.5) a timestep is drawn from LOW..HIGH-1."
    )
    clip_sample: bool = Field(True, description="Clip x0 estimates to [-1, 1] at sampling (pixel models).")
    zero_terminal_snr: bool = Field(False, description="Rescale the schedule so that T holds no signal.")


class TrainingSpec(_Strict):
    """The optimization."""

    steps: PositiveInt | None = Field(None, description="Optimizer updates; give this or epochs (neither: one epoch).")
    epochs: PositiveInt | None = Field(None, description="Passes over the training part.")
    batch_size: PositiveInt = Field(16, description="Images per process and micro-batch.")
    gradient_accumulation: PositiveInt = Field(1, description="Micro-batches per update.")
    lr: FiniteFloat = Field(1e-4, gt=0, description="Peak learning rate.")
    lr_schedule: Literal["constant", "linear", "cosine", "exponential", "plateau"] = Field(
        "cosine", description="Its shape."
    )
    warmup_steps: NonNegativeInt = Field(500, description="Updates of linear warm-up.")
    lr_gamma: FiniteFloat | None = Field(
        None, gt=0, le=1, description="exponential: factor per epoch (default 0.1^(1/epochs)); plateau: factor (0.5)."
    )
    plateau_patience: NonNegativeInt = Field(
        5, description="plateau: validations without progress before the LR falls."
    )
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    weight_decay: FiniteFloat = Field(1e-2, ge=0, description="AdamW's weight decay.")
    clip: FiniteFloat = Field(1.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    ema: bool = Field(True, description="Keep an exponential moving average of the weights.")
    ema_decay: FiniteFloat = Field(0.9999, ge=0, lt=1, description="Its decay, reached after a warm-up (1+s)/(10+s).")
    class_dropout: FiniteFloat = Field(
        0.1, ge=0, le=1, description="Probability of the null class, or of the empty caption (for guidance)."
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto",
        description="Autocast type; masters stay fp32. auto: the launcher's, else bf16 on a GPU that has it, else no.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    compile: bool = Field(False, description="torch.compile the network.")
    channels_last: bool | None = Field(None, description="Memory format; none: by device.")
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes initial weights, data order, noise.")
    log_every: PositiveInt = Field(10, description="Updates between readings of the loss.")
    checkpoint_every: PositiveInt = Field(500, description="Updates between checkpoints.")
    keep_checkpoints: int = Field(2, ge=2, description="Checkpoints kept.")
    preview_every: NonNegativeInt = Field(500, description="Updates between previews; 0: only at the end.")
    preview_images: PositiveInt = Field(16, description="Pictures of a preview.")
    preview_steps: PositiveInt = Field(50, description="Sampling steps of a preview (DDIM).")
    preview_guidance: FiniteFloat = Field(2.0, description="Guidance of class-conditional previews.")
    validate_every: NonNegativeInt = Field(0, description="Updates between validations; 0: once an epoch.")
    evaluate_every: NonNegativeInt = Field(
        0, description="Updates between evaluations by FID, KID and others, which keep the best by KID; 0: none."
    )
    evaluate_images: int = Field(256, ge=2, description="Pictures of an evaluation.")
    evaluate_steps: PositiveInt = Field(20, description="Sampling steps of an evaluation (DDIM).")
    evaluate_features: str = Field(
        "classifier", description="classifier (learned from the dataset), classifier:FILE, clip:ID, ..."
    )


class OutputSpec(_Strict):
    """Where the result goes."""

    dir: str | None = Field(None, description="The run's folder; runs/<recipe> when left out.")
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list, description="Trackers.")
    push_to_hub: bool = Field(False, description="Upload the result to the Hub.")
    hub_id: str | None = Field(None, description="The repository to push to; the folder's name when left out.")
    hub_private: bool = Field(True, description="Make a new repository private.")


class Recipe(_Strict):
    """A whole training run."""

    name: str = Field("custom", description="What the run is called.")
    description: str = Field("", description="One sentence.")
    dataset: DatasetSpec = Field(default_factory=DatasetSpec)
    model: ModelSpec = Field(default_factory=ModelSpec)
    noise: NoiseSpec = Field(default_factory=NoiseSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    output: OutputSpec = Field(default_factory=OutputSpec)

    @model_validator(mode="after")
    def _rules(self) -> Recipe:
        if self.training.steps is not None and self.training.epochs is not None:
            raise ValueError("training.steps and training.epochs are both set; give one of them")
        if self.dataset.streaming and self.training.steps is None:
            raise ValueError("dataset.streaming knows no length, so epochs cannot be counted; give training.steps")
        if self.training.lr_schedule == "plateau" and self.dataset.validation == 0:
            raise ValueError(
                "training.lr_schedule plateau watches the validation loss; set dataset.validation, say 0.05"
            )
        if self.training.evaluate_every and (self.dataset.streaming or self.noise.prediction in ONE_STEP):
            what = "a stream has no pictures to compare" if self.dataset.streaming else "a one-step denoiser draws none"
            raise ValueError(f"training.evaluate_every: {what}; leave it at 0")
        if self.noise.zero_terminal_snr and self.noise.prediction == "epsilon":
            raise ValueError(
                "noise.zero_terminal_snr with prediction epsilon divides by zero at T; use v_prediction or sample"
            )
        if self.noise.snr_gamma is not None and self.noise.prediction not in DIFFUSION:
            raise ValueError("noise.snr_gamma holds for epsilon, sample and v_prediction only")
        self._noise_rules()
        self._text_rules()
        return self

    def _noise_rules(self) -> None:
        noise = self.noise
        diffusion = noise.prediction in DIFFUSION
        if noise.times != "uniform" and noise.prediction not in ("flow", "linear_mix"):
            raise ValueError("noise.times holds for flow and linear_mix only")
        if noise.distribution != "normal" and noise.prediction != "linear_mix":
            raise ValueError(f"noise.distribution {noise.distribution} holds for linear_mix only")
        if self.dataset.normalize == "symmetric":
            return
        if diffusion and noise.clip_sample:
            raise ValueError(
                f"noise.clip_sample clips to [-1, 1], and dataset.normalize is {self.dataset.normalize}; set "
                "noise.clip_sample to false"
            )
        if noise.variance == "learned":
            raise ValueError("noise.variance learned counts grey levels of [-1, 1]; leave dataset.normalize symmetric")
        if self.dataset.normalize == "standard" and self.dataset.streaming:
            raise ValueError("dataset.normalize standard measures the images first, which a stream does not hold")

    def _text_rules(self) -> None:
        model, noise = self.model, self.noise
        diffusion = noise.prediction in DIFFUSION
        if noise.variance == "learned" and not diffusion:
            raise ValueError(
                f"a learned variance needs noise.prediction epsilon, sample or v_prediction, not {noise.prediction}"
            )
        if model.pretrained and (noise.variance == "learned" or model.text != "none"):
            raise ValueError("model.text and noise.variance learned train from scratch; leave model.pretrained out")
        if noise.timestep_bias is not None:
            if not diffusion:
                raise ValueError("noise.timestep_bias holds for epsilon, sample and v_prediction only")
            parse_timestep_bias(noise.timestep_bias, noise.timesteps)
        if model.text == "none":
            return
        if noise.variance != "learned":
            raise ValueError("model.text needs noise.variance learned: DeepFloyd IF's pipeline expects the variance")
        if model.class_conditioning != "none":
            raise ValueError("model.text and model.class_conditioning are both set; give one of them")
        if self.dataset.streaming:
            raise ValueError("model.text makes its vocabulary from all captions, which a stream does not hold")


def with_dependent_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's values, where what model.text implies and the recipe leaves out is filled in.

    No validator does this: one that sees the values first would have pydantic read them as Python objects, under whose
    strict rules a list is no tuple.
    """
    model, noise = data.get("model"), data.get("noise", {})
    if not isinstance(model, dict) or not isinstance(noise, dict) or model.get("text", "none") == "none":
        return data
    return {**data, "model": {"preset": "if32", **model}, "noise": {"variance": "learned", **noise}}


def parse_timestep_bias(text: str, timesteps: int) -> tuple[int, int, float]:
    """Read `LOW-HIGH` or `LOW-HIGH:P` as (low, high, p).

    Raises:
        ValueError: It is written otherwise, or the range does not lie in 0..timesteps, or P not in [0, 1].
    """
    match = re.fullmatch(r"(\d+)-(\d+)(?::(\d*\.?\d+))?", text.strip())
    if match is None:
        raise ValueError(f"noise.timestep_bias {text!r} is not written as LOW-HIGH or LOW-HIGH:P, say 200-900:0.5")
    low, high, share = int(match[1]), int(match[2]), float(match[3] or 0.5)
    if not (0 <= low < high <= timesteps and 0 <= share <= 1):
        raise ValueError(f"noise.timestep_bias {text!r}: needed 0 <= LOW < HIGH <= {timesteps} and 0 <= P <= 1")
    return low, high, share


# Changing these does not change what a run computes, so a resume may.
FREE_FIELDS = frozenset(
    {
        "description", "output.dir", "output.report_to", "output.push_to_hub", "output.hub_id", "output.hub_private",
        "training.log_every", "training.checkpoint_every", "training.keep_checkpoints", "training.preview_every",
        "training.preview_images", "training.preview_steps", "training.preview_guidance",
        "training.evaluate_every", "training.evaluate_images", "training.evaluate_steps", "training.evaluate_features",
        "dataset.workers", "dataset.cache",
    }
)  # fmt: skip

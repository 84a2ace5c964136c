"""The engine: one loop, guidance and constraints around it, samplers and noise levels.

Everything here works on tensors, a diffusers scheduler and a `Denoiser`, `(x, t, cond) -> Prediction`. This room knows
no model family, opens no files and prints nothing.
"""

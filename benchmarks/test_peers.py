"""A whole program of others: diffusers' AudioLDM pipeline, where it is installed."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from benchmarks.device import DEVICE, float32_of_others
from benchmarks.measure import ONCE, Comparison, Measure
from benchmarks.modules import Made, half, hifigan, ready
from benchmarks.sizes import SAMPLED, SIZES, of_whole
from eeg2speech.audio import SAMPLE_RATE

SHAPE = SIZES.shapes[SIZES.whole].film_only
NAME = f"generating one clip of {SHAPE.clip_s} s, {SIZES.whole}, 10 steps: diffusers' AudioLDM pipeline / ours"


@of_whole
def test_ours_with_hifigan(measure: Measure) -> None:
    """The same vocoder as the peer's, and its number of steps; no guidance, networks in `SAMPLED`."""
    made = Made(SHAPE)
    pipeline, batch = half(made.pipeline("dpmsolver++")), made.batch(1)
    pipeline.register_modules(vocoder=hifigan())
    measure(
        lambda: pipeline(batch.eeg, batch.positions, batch.subject, num_inference_steps=10),
        unit="clip",
        signal_s=SHAPE.clip_s,
        compare=Comparison(NAME, "ours"),
        **ONCE | {"warm_up": True},
        lever=SAMPLED.name,
        guidance_scale=1.0,
    )


@of_whole
def test_audioldm_pipeline_of_diffusers(measure: Measure) -> None:
    """At its defaults and PyTorch's: DDIM, 10 steps, guidance 2.5, float32; random weights, prompt embeddings given."""
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "AudioLDMPipeline"):
        pytest.skip("this version of diffusers has no AudioLDMPipeline")
    made = Made(SHAPE)
    pipeline = diffusers.AudioLDMPipeline(
        vae=made.autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=made.denoiser().unet,
        scheduler=DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False),
        vocoder=hifigan(),
    ).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    prompt, negative = torch.randn(2, 1, made.model.embedding.dim, device=DEVICE)
    asked = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "audio_length_in_s": SHAPE.clip_s}
    with float32_of_others():
        waveform = measure(
            lambda: pipeline(**asked, output_type="pt").audios,
            unit="clip",
            signal_s=SHAPE.clip_s,
            compare=Comparison(NAME, "peer"),
            guidance_scale=2.5,
            float32="TensorFloat-32 in cuDNN's convolutions",
            **ONCE,
        )
    assert waveform.shape == (1, round(SHAPE.clip_s * SAMPLE_RATE))


def text_encoder() -> nn.Module:
    """It is asked for its precision and nothing else, since the prompt is embedded already."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    tiny = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ready(ClapTextModelWithProjection(ClapTextConfig(**tiny)))

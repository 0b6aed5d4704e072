"""Installation of megatron_vr; the versions that were tested together are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

REASONING_GYM = ["reasoning-gym>=0.1.20"]
# modelopt imports requests and does not ask for it. The FP8 of its 0.40 overflows on a CPU.
QUANT = ["nvidia-modelopt>=0.47", "requests"]

setup(
    name="megatron-vr",
    version="0.1.0",
    description="Variational reasoning for language models, at scale, on Megatron-Core",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["megatron_vr", "megatron_vr.*"]),
    package_data={
        "megatron_vr": ["py.typed"],
        "megatron_vr.problems": ["formats/*/*", "benchmarks/data/*.yaml"],
        "megatron_vr.report": ["templates/*"],
        "megatron_vr.models": ["known/*.json"],
        "megatron_vr.cluster": ["templates/*", "templates/sites/*"],
    },
    entry_points={"console_scripts": ["megatron-vr = megatron_vr.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.16.1,<0.20",
        "transformers>=4.57",
        "tokenizers",
        "safetensors",
        "numpy",
        "packaging",
        "pyarrow",
        "datasets",
        "pydantic>=2.7",
        "pyyaml",
        "typer>=0.12",
        "rich",
        "jinja2",
        "matplotlib",
        "tensorboard",
        "math-verify",
        "aiohttp",
        "orjson",
        "prometheus_client",
        "tenacity",
        "pebble",
        "psutil",  # Megatron's checkpoint writer waits for ever without it
        # Megatron-Core 0.19 imports it, also without a GPU.
        'triton; python_version >= "3.12" and platform_system == "Linux"',
    ],
    extras_require={
        "gpu": ["transformer-engine[pytorch]>=2.8"],
        "vllm": ["vllm>=0.10"],
        "sglang": ["sglang>=0.5"],
        "quant": QUANT,
        "wandb": ["wandb"],
        "reasoning-gym": REASONING_GYM,
        "test": [
            *REASONING_GYM,
            *QUANT,
            "pytest",
            "pytest-xdist",
            "pytest-timeout",
            "hypothesis",
            "scipy",
            'triton; platform_system == "Linux"',  # the head's kernels, interpreted on a CPU
            "tiktoken",
            "dashscope",
            "ruff",
            "mypy",
            "types-PyYAML",
        ],
    },
)

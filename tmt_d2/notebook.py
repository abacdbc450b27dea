"""Training, adaptation, prediction and figures in one line each, for notebooks.

    from tmt_d2 import notebook
    source = notebook.train("cityscapes", "output/source")
    model = notebook.adapt(source, "bdd100k", "output/tmt")
    model.predict("street.png").labels
    model.show_transferability("street.png")
    model.show_attention("street.png", pixel=(200, 90))

Use the commands for several processes or many pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from matplotlib.figure import Figure

from tmt_d2.adaptation import task_of
from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.engine.checkpoint.checkpointer import FINAL
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.run_dir import RunDir
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.experiments.units import estimator_cfg
from tmt_d2.inference import Prediction, Predictor
from tmt_d2.inference.attention import report_image
from tmt_d2.inference.images import InputImage
from tmt_d2.inference.predictor import ImageLike
from tmt_d2.modeling.tmt import attention_in_inference
from tmt_d2.utils.logs import log_to_screen
from tmt_d2.visualization.figures import prediction_figure, query_figure, transferability_figure
from tmt_d2.visualization.inspection import AttentionReport, Selector


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        folder: output folder of the run.
        config: config file of the model.
        results: {split: {"mIoU", "IoU-road", ...}} in percent.
    """

    folder: Path
    config: str
    results: Mapping[str, Mapping[str, float]]

    @property
    def weights(self) -> str:
        return str(self.folder / f"{FINAL}.pth")

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor.from_config(str(self.folder / "config.yaml"), self.weights)

    def predict(self, image: ImageLike) -> Prediction:
        """Predict a path, a PIL image, or an (H, W, 3) uint8 array in RGB."""
        return self.predictor(image)

    def show_prediction(self, path: str | Path) -> Figure:
        return prediction_figure([self._report(path)], Path(path).name)

    def show_transferability(self, path: str | Path) -> Figure:
        """Draw T of each level, the excluded positions and the regions.

        Raises:
            UserError: the model is a plain Mask2Former.
        """
        with attention_in_inference(self.predictor.model):
            report = self._report(path)
        if not report.levels:
            raise UserError("a plain Mask2Former has no T", key=self.weights, hint="use adapt(..., method='tmt')")
        return transferability_figure(report, f"{Path(path).name}: transferability")

    def show_attention(
        self, path: str | Path, pixel: tuple[int, int] | None = None, layers: Sequence[int] | None = None
    ) -> Figure:
        """Draw the attention of one query: the owner of ``pixel`` (x, y), or the most confident query.

        T masks attention as in training.
        """
        with attention_in_inference(self.predictor.model):
            report = self._report(path, [pixel] if pixel else [], top=0 if pixel else 1, layers=layers)
        query = report.queries[0]
        return query_figure([report], [query], f"{Path(path).name}: {query.name}, query {query.selected.query}", ())

    def _report(self, path: str | Path, selectors: Sequence[Selector] = (), **selection: Any) -> AttentionReport:
        return report_image(self.predictor, InputImage.of({"file_name": str(path)}), selectors, **selection)


def train(
    data: str,
    output: str | Path,
    config: str = "configs/models/lite0.yaml",
    options: Mapping[str, Any] = {},
    hooks: Sequence[HookBase] = (),
) -> Trained:
    """Train a source model on a data set such as "cityscapes"; resume a run in ``output`` that was interrupted.

    Args:
        config: a file of configs/models.
        options: overrides of the config, such as {"SOLVER.MAX_ITER": 1000}.
        hooks: further hooks of Detectron2.

    Raises:
        UserError: ``output`` holds a run of other data or options.
    """
    datasets = {"DATASETS.TRAIN": (split_name(data, "train"),), "DATASETS.TEST": (split_name(data, "val"),)}
    return _run(_cfg(config, "source", output, datasets, options), config, hooks)


def adapt(
    source: Trained,
    target: str,
    output: str | Path,
    method: str = "tmt",
    options: Mapping[str, Any] = {},
    hooks: Sequence[HookBase] = (),
) -> Trained:
    """Fine-tune ``source`` to a target data set by a method or variant; arguments as in ``train``.

    The estimator that TMT needs is trained in ``output/estimator``.
    """
    before = setup_cfg(str(source.folder / "config.yaml")).DATASETS
    datasets = {
        "DATASETS.TRAIN": (split_name(target, "train"),),
        "DATASETS.TEST": (split_name(target, "val"),),
        "DATASETS.SOURCE_TRAIN": tuple(before.TRAIN),
        "DATASETS.SOURCE_TEST": tuple(before.TEST),
        "MODEL.WEIGHTS": source.weights,
    }
    cfg = _cfg(source.config, method, output, datasets, options)
    if task_of(cfg).starts_from == "estimator":
        shared = _cfg(source.config, "estimator", Path(output) / "estimator", datasets, options)
        _, estimator = estimator_cfg(shared, cfg)
        datasets["MODEL.WEIGHTS"] = _run(estimator, source.config).weights
        cfg = _cfg(source.config, method, output, datasets, options)
    return _run(cfg, source.config, hooks)


def _cfg(
    config: str, method: str, output: str | Path, values: Mapping[str, Any], options: Mapping[str, Any]
) -> CfgNode:
    merged = {**values, **options, "OUTPUT_DIR": str(output)}
    return setup_cfg(config, [item for pair in merged.items() for item in pair], method)


def _run(cfg: CfgNode, config: str, hooks: Sequence[HookBase] = ()) -> Trained:
    log_to_screen()
    RunDir(cfg).check_same_settings()
    results = run_stage(cfg, resume=True, hooks=[EvaluationImages(cfg), *hooks])
    return Trained(Path(cfg.OUTPUT_DIR), config, results)

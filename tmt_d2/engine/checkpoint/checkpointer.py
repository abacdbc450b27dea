"""Checkpoints: written atomically, a few of them kept, resumed from, and refused where they do not fit the model."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from tmt_d2.engine.checkpoint.classes import CLASSES, EMPTY_WEIGHT, drop_other_sizes, encode_classes, match_classes
from tmt_d2.engine.checkpoint.files import (
    DamagedCheckpoint,
    find_weights,
    read_pickle,
    read_torch,
    strip_wrappers,
)
from tmt_d2.engine.checkpoint.pretrained import read_safetensors
from tmt_d2.errors import UserError
from tmt_d2.modeling.backbones.timm_backbone import timm_part
from tmt_d2.modeling.official import CLASS_HEAD, load_report, upgrade_names
from tmt_d2.transferability.acte import TransferabilityEstimator
from tmt_d2.transferability.settings import decode_settings, refuse_other_settings
from tmt_d2.utils.files import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

ESTIMATOR = "transferability."
FROZEN_ENCODER = (f"{ESTIMATOR}backbone.", f"{ESTIMATOR}pixel_decoder.")  # filled from the model's own where missing
SETTINGS = f"{ESTIMATOR}_extra_state"  # PyTorch's name for it
ESTIMATOR_TRAINING = "estimator_training"  # a checkpoint of the estimator stage has this entry, no other one
ADAPTER = ".lora_"  # in the names of adapters, which may be added to a model that was trained without
FINAL = "model_final"
COUNT = "num_batches_tracked"  # of batch normalisation: with a momentum it changes nothing, and many files lack it
METHOD_TRAINING = "method_training"  # what a method's training remembers, where there is a ``MethodTraining``
ENDED_AFTER = "ended_after"  # iterations; a checkpoint has this entry where ``keep_weights`` took the trainer's state
SUPERSEDED = "superseded.json"  # checkpoints of a run before the one in the folder: name and time of writing
_PERIODIC = re.compile(r"model_\d{7}\.pth")


class TMTCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but: files are written atomically, checked and read safely; none misfits silently;
    the last few are kept, and where the newest is damaged the one before it is taken."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        require_estimator: bool = False,
        require_head: bool = False,
        keep: int = 3,
        reinit_class_head: bool = False,
        backbone_only: bool = False,
        **others: Any,
    ):
        """
        Args:
            require_estimator: refuse a checkpoint without trained discriminators.
            require_head: refuse a checkpoint without a segmentation head, with which every prediction is random.
            keep: how many periodic checkpoints stay; the final one does not count.
            reinit_class_head: where the file has other classes, take its rows of the class head by name, and leave the
                others as initialised; all of them where the file names no classes and its head is of another size.
            backbone_only: only the backbone will be used: the file must have all of it, and its head may be any.
        """
        super().__init__(model, save_dir, **others)
        self.require_estimator, self.require_head, self.keep = require_estimator, require_head, keep
        self.reinit_class_head, self.backbone_only = reinit_class_head or backbone_only, backbone_only
        self.found_head = False  # whether the file that was read last has a segmentation head
        self._loading, self._resumes = "", False

    def save(self, name: str, **extra: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        with atomic_write(path) as file:
            torch.save({**self._model_and_classes(), **state, **extra}, file)
        if name == FINAL or _PERIODIC.fullmatch(path.name):  # others are not to be resumed from
            self.tag_last_checkpoint(path.name)
            for old in self._newest_first()[self.keep :]:
                old.unlink(missing_ok=True)
        self.logger.info("saved %s", path)

    def save_weights(self, name: str, **extra: Any) -> None:
        """The model alone, which no run can be resumed from."""
        if self.save_dir and self.save_to_disk:
            path = Path(self.save_dir) / f"{name}.pth"
            with atomic_write(path) as file:
                torch.save({**self._model_and_classes(), **extra}, file)
            self.logger.info("saved %s", path)

    def _model_and_classes(self) -> dict[str, Any]:
        classes = getattr(self.model, "classes", None)
        return {"model": self.model.state_dict()} | ({} if classes is None else {CLASSES: encode_classes(classes)})

    def _newest_first(self) -> list[Path]:
        """The periodic checkpoints. By time of writing: an earlier run's in the same folder may have larger numbers."""
        found = [path for path in Path(self.save_dir).glob("model_*.pth") if _PERIODIC.fullmatch(path.name)]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def resumable(self) -> list[Path]:
        """What a run in this folder may go on from: the file named in ``last_checkpoint``, then the newest others."""
        folder = Path(self.save_dir)
        tag = folder / "last_checkpoint"
        tagged = [folder / Path(tag.read_text(errors="replace").strip()).name] if tag.is_file() else []
        candidates = [*tagged, *self._newest_first(), folder / f"{FINAL}.pth"]
        superseded = self._superseded()
        found = [path for path in dict.fromkeys(candidates) if path.is_file()]
        return [path for path in found if superseded.get(path.name) != path.stat().st_mtime_ns]

    def supersede(self) -> None:
        """A run begins anew in a folder with checkpoints: they stay until it replaces them, but it is not theirs."""
        if self.save_dir and self.save_to_disk and (files := self.resumable()):
            now = {path.name: path.stat().st_mtime_ns for path in files}
            write_json(Path(self.save_dir) / SUPERSEDED, self._superseded() | now)

    def _superseded(self) -> dict[str, int]:
        path = Path(self.save_dir) / SUPERSEDED
        return read_json(path) if path.is_file() else {}

    def has_checkpoint(self) -> bool:
        return bool(self.resumable())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """
        Raises: as ``load``; and UserError if ``resume`` is asked for and every checkpoint here is damaged.
        """
        files = self.resumable() if resume else []
        if not files:
            return self.load(path, checkpointables=[])
        problems = []
        for file in files:
            try:
                return self.load(str(file))
            except DamagedCheckpoint as error:
                self.logger.warning("%s; trying the one before it", error)
                problems.append(file.name)
        raise UserError(
            f"{self.save_dir}: every checkpoint is damaged ({', '.join(problems)}): delete them to begin anew"
        )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint", "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: ``path`` does not exist.
            UserError: it is damaged, holds more than arrays, or belongs to another model, or, where its training is to
                go on, to another method's; one line with the file.
        """
        self._loading, self._resumes = path, checkpointables is None
        if path and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint {path} {'is a folder' if Path(path).is_dir() else 'does not exist'}")
        try:
            return super().load(path, checkpointables)
        except URLError as error:
            reason = f"{error.code} {error.reason}" if isinstance(error, HTTPError) else error.reason
            raise FileNotFoundError(f"checkpoint {path} cannot be downloaded: {reason}") from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind after an error, and then refuses to load

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".pkl"):
                content = read_pickle(filename)
            elif filename.endswith(".safetensors"):
                content = {"model": read_safetensors(filename)}
            elif filename.endswith(".pyth"):  # of pycls; Detectron2 would read it without `weights_only`
                content = {"model": self._torch_load(filename)["model_state"], "matching_heuristics": True}
            else:
                content = super()._load_file(filename)  # a file without an entry "model" is put below it
                whole = content["model"]
                content["model"] = find_weights(whole, filename)
                if isinstance(whole, dict) and CLASSES in whole and content["model"] is not whole:
                    content[CLASSES] = whole[CLASSES]
            if not isinstance(content["model"], dict):
                raise pickle.UnpicklingError(f"its model is a {type(content['model']).__name__}, not a dictionary")
            if prefix := strip_wrappers(content["model"], filename):
                self.logger.info("%s: names were written with %s, which is left out", filename, prefix)
            return content
        except UserError:
            raise
        except Exception as error:  # damaged bytes make the readers raise nearly anything
            if isinstance(error, OSError) and error.filename:  # the file system's own
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DamagedCheckpoint(f"checkpoint {filename} is damaged or holds more than arrays: {reason}") from error

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return read_torch(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        if self._resumes and METHOD_TRAINING in self.checkpointables and METHOD_TRAINING not in checkpoint:
            raise UserError(
                f"checkpoint {self._loading} is of another TRANSFER.METHOD, whose training cannot go on as this one's: "
                "choose another OUTPUT_DIR"
            )
        model_state = self.model.state_dict()
        timm = timm_part(self.model)
        if timm and not any(name.startswith(("backbone.", "sem_seg_head.")) for name in checkpoint["model"]):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            converted = timm[1].convert(checkpoint["model"], self._loading)
            checkpoint = {"model": {f"{timm[0]}.{name}": value for name, value in converted.items()}}
        weights = checkpoint["model"]
        _rename(weights)
        self._refuse_other_estimator(checkpoint)
        model_names = set(model_state) - {SETTINGS}
        names = set(weights)
        class_rows = match_classes(checkpoint, self.model, model_state, self._loading, self.reinit_class_head)
        reset = drop_other_sizes(weights, model_state) if self.reinit_class_head else set()
        incompatible = super()._load_model(checkpoint)
        incompatible.missing_keys[:] = [
            name for name in incompatible.missing_keys if name not in {*reset, SETTINGS} and not name.endswith(COUNT)
        ]
        misfits = [name for name, _, _ in incompatible.incorrect_shapes]
        copied = {name for name in model_names - names if name.startswith(FROZEN_ENCODER)}
        loaded = {name for name in model_names - copied - reset if not name.endswith(COUNT)}
        loaded -= {*incompatible.missing_keys, *misfits}
        unused = [*incompatible.unexpected_keys, *misfits]
        self.logger.info(load_report(self._loading, len(loaded), incompatible.missing_keys, unused, reset, class_rows))
        self.found_head = any(name.startswith("sem_seg_head.") for name in names)
        goes_on = self._resumes and self.checkpointables
        if not goes_on and not any(ADAPTER in name for name in names):  # at first they change nothing
            incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if ADAPTER not in name]
        if self.backbone_only:
            self._refuse_part_of_backbone(incompatible)
        elif self.found_head:
            self._refuse_misfit(incompatible)
        elif self.require_head:
            raise UserError(
                f"checkpoint {self._loading} holds no segmentation head (sem_seg_head.*), and a random one predicts "
                "nothing: name the checkpoint of a trained model"
            )
        elif not self.require_estimator:
            self._tell_what_initialises(loaded, model_names, names, misfits)
            incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name.startswith("backbone.")]
        if self.require_estimator and any(
            n.startswith(f"{ESTIMATOR}discriminators.") for n in incompatible.missing_keys
        ):
            raise UserError(
                f"checkpoint {self._loading} has no estimator ({ESTIMATOR}discriminators.*): run the estimator stage "
                "(TRANSFER.STAGE estimator) first and use its model_final.pth"
            )
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            keys[:] = [name for name in keys if not name.startswith(ESTIMATOR)]
        return incompatible

    def _refuse_other_estimator(self, checkpoint: Mapping[str, Any]) -> None:
        """Compare the settings of the file's estimator with the model's, and take them out of the file."""
        weights = checkpoint["model"]
        state = weights.pop(SETTINGS, None)
        estimator = getattr(self.model, ESTIMATOR.rstrip("."), None)
        if not isinstance(estimator, TransferabilityEstimator):
            return
        if state is None:
            if any(name.startswith(f"{ESTIMATOR}discriminators.") for name in weights):
                self.logger.warning(
                    "%s does not say what its estimator was trained with: taken to be what the config says, %s",
                    self._loading,
                    ", ".join(f"MODEL.TMT.{key} {value}" for key, value in estimator.settings.items()),
                )
            return
        try:
            there = decode_settings(state)
        except ValueError as error:
            raise DamagedCheckpoint(f"checkpoint {self._loading} is damaged: {error}") from error
        if ESTIMATOR_TRAINING in checkpoint:
            # The model that the discriminators have seen was the frozen source model, and it is still in the file:
            # either value of FEATURES begins with its features. Once it is fine-tuned, they mean different ones.
            there.pop("FEATURES", None)
        refuse_other_settings(there, estimator.settings, f"checkpoint {self._loading}")

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """Said already, by the load report."""

    def _tell_what_initialises(self, loaded: set[str], model: set[str], file: set[str], misfits: list[str]) -> None:
        """Refuse a file of another network, whose head is not looked for: it would initialise next to nothing."""
        part = {name for name in model if not name.endswith(COUNT)}
        part = {name for name in part if name.startswith("backbone.")} or part
        lacking = part - loaded
        if part & {*misfits} or 2 * len(lacking) > len(part):  # a pyramid or norms may be new, a network is not
            raise UserError(
                f"checkpoint {self._loading} fits {len(part) - len(lacking)} of the backbone's {len(part)} weights, "
                f"e.g. not {min(lacking)}; it holds {', '.join(sorted(file)[:2]) or 'nothing'}, ...: name weights of "
                "MODEL.BACKBONE, or a checkpoint of this model"
            )
        self.logger.info("%s holds no segmentation head: only the backbone is initialised from it", self._loading)
        if lacking:
            self.logger.warning(
                "%s lacks %d of the backbone's %d weights, which stay random, e.g. %s",
                self._loading, len(lacking), len(part), min(lacking),
            )  # fmt: skip

    def _refuse_part_of_backbone(self, incompatible: _IncompatibleKeys) -> None:
        lacking = [*incompatible.missing_keys, *(name for name, _, _ in incompatible.incorrect_shapes)]
        lacking = [name for name in lacking if name.startswith("backbone.")]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(f"checkpoint {self._loading} is of another backbone: {lacking[0]}{more} is not in the file")

    def _refuse_misfit(self, incompatible: _IncompatibleKeys) -> None:
        def essential(names: list[str]) -> list[str]:
            return [
                name for name in names if not name.startswith((ESTIMATOR, "criterion.")) and not name.endswith(COUNT)
            ]

        problems = [
            f"{name} is {there} in the file and {here} in the model"
            for name, there, here in incompatible.incorrect_shapes
            if name != EMPTY_WEIGHT
        ]
        problems += [f"{name} is not in the file" for name in essential(incompatible.missing_keys)]
        problems += [f"{name} is not in the model" for name in essential(incompatible.unexpected_keys)]
        if problems:
            if {name for name, _, _ in incompatible.incorrect_shapes} - {EMPTY_WEIGHT} == set(CLASS_HEAD):
                there, here = (shape[0] - 1 for shape in incompatible.incorrect_shapes[0][1:])
                raise UserError(
                    f"checkpoint {self._loading} has {there} classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {here}: "
                    + (f"set it to {there}, or " if self.require_head else "")
                    + "to train a new class head, set TRANSFER.REINIT_CLASS_HEAD True"
                )
            more = f" and {len(problems) - 1} more differences" if len(problems) > 1 else ""
            raise UserError(
                f"checkpoint {self._loading} is of another architecture: {problems[0]}{more}; "
                "use the config that it was trained with"
            )


class _Reader(TMTCheckpointer):
    """Reads a checkpoint for its own sake: ``load`` gives everything in it."""

    def _load_model(self, checkpoint: Any) -> None:
        self._convert_ndarray_to_tensor(checkpoint["model"])
        _rename(checkpoint["model"])


def read_state(path: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint (path or URL) under its present names, on the CPU.

    Raises: as ``TMTCheckpointer.load``.
    """
    return _Reader(nn.Module()).load(path)["model"]


def refuse_another_estimator(path: str, folder: str | Path) -> None:
    """Refuse to resume a fine-tuning where the file that it began with now holds another estimator: T of training
    images would come from that one, T of all others from the checkpoint's.

    Args:
        path: MODEL.WEIGHTS. folder: of the run.

    Raises:
        UserError: names the file.
    """
    for file in TMTCheckpointer(nn.Module(), str(folder)).resumable():
        try:
            there = read_state(str(file))
        except DamagedCheckpoint:
            continue  # as ``resume_or_load`` does
        here = read_state(path)
        for name, value in there.items():
            if not name.startswith(ESTIMATOR) or name == SETTINGS:
                continue
            other = here.get(name, here.get(name[len(ESTIMATOR) :]))  # a copy of the model's own encoder, or that
            if other is not None and not torch.equal(value, other):
                raise UserError(
                    f"--resume: the estimator in MODEL.WEIGHTS {path} is not the one that {file} began with: restore "
                    "that file, or choose another OUTPUT_DIR"
                )
        return


def keep_weights(folder: str | Path) -> None:
    """Make the folder of a stage that has ended small: its final checkpoint keeps the weights, the optimiser and the
    schedule go, and so do the checkpoints of steps before it. Without effect the second time, or without a checkpoint.

    Raises:
        UserError: the final checkpoint is damaged; nothing was touched.
    """
    final = Path(folder) / f"{FINAL}.pth"
    if not final.is_file():
        return
    content = _Reader(nn.Module()).load(str(final))
    for path in Path(folder).rglob("model_*.pth"):  # first, to make room; those of pre-alignment lie in a subfolder
        if path != final and (path.name == final.name or _PERIODIC.fullmatch(path.name)):
            path.unlink(missing_ok=True)
    content.pop(METHOD_TRAINING, None)
    if "trainer" in content:
        content[ENDED_AFTER] = content.pop("trainer")["iteration"] + 1
        with atomic_write(final) as file:
            torch.save(content, file)
        logger.info("%s keeps the weights only", final)


def ended_after(folder: str | Path) -> int | None:
    """Iterations of a stage that has ended and that ``keep_weights`` made small; None: a run may go on from here."""
    files = TMTCheckpointer(nn.Module(), str(folder)).resumable()
    if not files or files[0].stem != FINAL:
        return None
    try:
        return torch.load(files[0], map_location="cpu", weights_only=True, mmap=True).get(ENDED_AFTER)
    except Exception:  # damaged, which is said when it is loaded
        return None


def _rename(weights: dict[str, Any]) -> None:
    """Names of old official checkpoints to the present ones, in place."""
    renamed = upgrade_names(weights)
    for old, new in renamed.items():
        weights[new] = weights.pop(old)
    if renamed:
        logger.info("%d entries have names of an old official version, e.g. %s: renamed", len(renamed), min(renamed))

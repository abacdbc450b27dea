"""Checkpoints: written atomically, the last few kept, resumed from, and refused if they do not fit the model."""

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
from tmt_d2.modeling.official import CLASS_HEAD, ESTIMATOR, load_report, upgrade_names
from tmt_d2.transferability.acte import FROZEN_ENCODER, TransferabilityEstimator, fill_frozen_encoder
from tmt_d2.transferability.settings import decode_settings, refuse_other_settings
from tmt_d2.utils.files import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

SETTINGS = f"{ESTIMATOR}_extra_state"  # PyTorch's name for it
ESTIMATOR_TRAINING = "estimator_training"  # entry of checkpoints of the estimator's training only
ADAPTER = ".lora_"  # in the names of adapters, which may be added to a model that was trained without them
FINAL = "model_final"
COUNT = "num_batches_tracked"  # of batch normalization: with a momentum it has no effect, and many files lack it
METHOD_TRAINING = "method_training"  # entry with the state of a method's training, if it has any
ENDED_AFTER = "ended_after"  # iterations; entry of a checkpoint from which ``keep_weights`` removed the trainer's state
SUPERSEDED = "superseded.json"  # checkpoints of an earlier run in the folder: file name -> time of writing
_PERIODIC = re.compile(r"model_\d{7}\.pth")


class TMTCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writing, checksums, safe reading and an error for every misfit.

    It keeps the last few checkpoints, and resumes from the one before if the newest is damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        require_estimator: bool = False,
        require_head: bool = False,
        keep: int = 3,
        reinit_class_head: bool = False,
        **others: Any,
    ):
        """
        Args:
            require_estimator: refuse a checkpoint without trained discriminators.
            require_head: refuse a checkpoint without a segmentation head; predictions of a random one are random.
            keep: maximum number of periodic checkpoints; the final one does not count.
            reinit_class_head: if the file has other classes, take their rows of the class head by name and leave the
                others as initialized; if it names no classes and its head has another size, leave all of them.
        """
        super().__init__(model, save_dir, **others)
        self.require_estimator, self.require_head, self.keep = require_estimator, require_head, keep
        self.reinit_class_head = reinit_class_head
        self.found_head = False  # the last file has a segmentation head
        self._loading, self._resumes = "", False

    def save(self, name: str, **extra: Any) -> None:
        if not self._writes:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self.save_weights(name, **state, **extra)
        if name == FINAL or _PERIODIC.fullmatch(f"{name}.pth"):  # no run resumes from others
            self.tag_last_checkpoint(f"{name}.pth")
            for old in self._newest_first()[self.keep :]:
                old.unlink(missing_ok=True)

    def save_weights(self, name: str, **extra: Any) -> None:
        """Save the model alone, from which no run can resume, and ``extra``."""
        if not self._writes:
            return
        classes = getattr(self.model, "classes", None)
        content = {"model": self.model.state_dict()} | ({} if classes is None else {CLASSES: encode_classes(classes)})
        path = Path(self.save_dir) / f"{name}.pth"
        with atomic_write(path) as file:
            torch.save(content | extra, file)
        self.logger.info("saved %s", path)

    @property
    def _writes(self) -> bool:
        return bool(self.save_dir and self.save_to_disk)

    def _newest_first(self) -> list[Path]:
        """Return the periodic checkpoints by time of writing: those of an earlier run may have larger numbers."""
        paths = [path for path in Path(self.save_dir).glob("model_*.pth") if _PERIODIC.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def resumable(self) -> list[Path]:
        """Return the files to resume from, in order: that of ``last_checkpoint``, the others newest first."""
        folder = Path(self.save_dir)
        tag = folder / "last_checkpoint"
        tagged = [folder / Path(tag.read_text(errors="replace").strip()).name] if tag.is_file() else []
        candidates = [*tagged, *self._newest_first(), folder / f"{FINAL}.pth"]
        superseded = self._superseded()
        paths = [path for path in dict.fromkeys(candidates) if path.is_file()]
        return [path for path in paths if superseded.get(path.name) != path.stat().st_mtime_ns]

    def supersede(self) -> None:
        """Exclude the present checkpoints from ``resumable``: a run from scratch keeps them until it replaces them."""
        if self._writes and (files := self.resumable()):
            now = {path.name: path.stat().st_mtime_ns for path in files}
            write_json(Path(self.save_dir) / SUPERSEDED, self._superseded() | now)

    def _superseded(self) -> dict[str, int]:
        path = Path(self.save_dir) / SUPERSEDED
        return read_json(path) if path.is_file() else {}

    def has_checkpoint(self) -> bool:
        return bool(self.resumable())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """
        Raises: as ``load``; and UserError if ``resume`` is set and every checkpoint here is damaged.
        """
        files = self.resumable() if resume else []
        if not files:
            return self.load(path, checkpointables=[])
        for file in files:
            try:
                return self.load(str(file))
            except DamagedCheckpoint as error:
                self.logger.warning("%s; trying the one before it", error)
        names = ", ".join(file.name for file in files)
        raise UserError(f"every checkpoint is damaged ({names})", key=self.save_dir, hint="delete them to start anew")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint", "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: ``path`` does not exist.
            UserError: it is damaged, holds more than arrays, or belongs to another model; or, if a training is to be
                resumed, to another method. Its key is the file.
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
            self._parsed_url_during_load = None  # Detectron2 keeps it after an error, and then refuses to load

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".pkl"):
                content = read_pickle(filename)
            elif filename.endswith(".safetensors"):
                content = {"model": read_safetensors(filename)}
            elif filename.endswith(".pyth"):  # of pycls; Detectron2 would read it without `weights_only`
                content = {"model": self._torch_load(filename)["model_state"], "matching_heuristics": True}
            else:
                content = super()._load_file(filename)  # which puts a file without an entry "model" into one
                whole = content["model"]
                content["model"] = find_weights(whole, filename)
                if isinstance(whole, dict) and CLASSES in whole and content["model"] is not whole:
                    content[CLASSES] = whole[CLASSES]
            if not isinstance(content["model"], dict):
                raise pickle.UnpicklingError(f"its model is a {type(content['model']).__name__}, not a dictionary")
            if prefix := strip_wrappers(content["model"], filename):
                self.logger.info("%s: the prefix %s of names is removed", filename, prefix)
            return content
        except UserError:
            raise
        except Exception as error:  # damaged bytes make the readers raise nearly anything
            if isinstance(error, OSError) and error.filename:  # of the file system
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DamagedCheckpoint(f"it is damaged or holds more than arrays: {reason}", key=filename) from error

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return read_torch(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        if self._resumes and METHOD_TRAINING in self.checkpointables and METHOD_TRAINING not in checkpoint:
            message = "it belongs to another TRANSFER.METHOD, whose training cannot be resumed by this one"
            raise self._refusal(message, "choose another OUTPUT_DIR")
        model_state = self.model.state_dict()
        timm = timm_part(self.model)
        if timm and not any(name.startswith(("backbone.", "sem_seg_head.")) for name in checkpoint["model"]):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            converted = timm[1].convert(checkpoint["model"], self._loading)
            checkpoint = {"model": {f"{timm[0]}.{name}": value for name, value in converted.items()}}
        weights = checkpoint["model"]
        _rename(weights)
        self._check_estimator_settings(checkpoint)
        names, model_names = set(weights), set(model_state) - {SETTINGS}
        class_rows = match_classes(checkpoint, self.model, model_state, self._loading, self.reinit_class_head)
        reset = drop_other_sizes(weights, model_state) if self.reinit_class_head else set()
        incompatible = super()._load_model(checkpoint)
        incompatible.missing_keys[:] = [
            name for name in incompatible.missing_keys if name not in {*reset, SETTINGS} and not name.endswith(COUNT)
        ]
        misfits = [name for name, _, _ in incompatible.incorrect_shapes]
        copied = {name for name in model_names - names if name.startswith(tuple(FROZEN_ENCODER.values()))}
        loaded = {name for name in model_names - copied - reset if not name.endswith(COUNT)}
        loaded -= {*incompatible.missing_keys, *misfits}
        unused = [*incompatible.unexpected_keys, *misfits]
        self.logger.info(load_report(self._loading, len(loaded), incompatible.missing_keys, unused, reset, class_rows))
        self.found_head = any(name.startswith("sem_seg_head.") for name in names)
        is_resumed = self._resumes and self.checkpointables
        if not is_resumed and not any(ADAPTER in name for name in names):  # new adapters change no output
            incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if ADAPTER not in name]
        if self.found_head:
            self._check_whole(incompatible)
        elif self.require_head:
            message = "it holds no segmentation head (sem_seg_head.*), and a random one predicts nothing"
            raise self._refusal(message, "name the checkpoint of a trained model")
        elif not self.require_estimator:
            self._check_initialization(loaded, model_names, names, misfits)
            incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name.startswith("backbone.")]
        if self.require_estimator and any(
            n.startswith(f"{ESTIMATOR}discriminators.") for n in incompatible.missing_keys
        ):
            message = f"it has no estimator ({ESTIMATOR}discriminators.*)"
            raise self._refusal(message, "train one with TRANSFER.METHOD estimator and use its model_final.pth")
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            keys[:] = [name for name in keys if not name.startswith(ESTIMATOR)]
        return incompatible

    def _refusal(self, message: str, hint: str = "") -> UserError:
        return UserError(message, key=self._loading, hint=hint)

    def _check_estimator_settings(self, checkpoint: Mapping[str, Any]) -> None:
        """Compare the settings of the file's estimator with the model's, and remove them from the file's weights."""
        state = checkpoint["model"].pop(SETTINGS, None)
        estimator = getattr(self.model, ESTIMATOR.rstrip("."), None)
        if state is None or not isinstance(estimator, TransferabilityEstimator):
            return
        try:
            there = decode_settings(state)
        except ValueError as error:
            raise DamagedCheckpoint(f"it is damaged: {error}", key=self._loading) from error
        if ESTIMATOR_TRAINING in checkpoint:
            # The discriminators have seen the frozen source model, which is still in the file, so both values of
            # FEATURES start from its features. After fine-tuning they mean different ones.
            there.pop("FEATURES", None)
        refuse_other_settings(there, estimator.settings, str(self._loading))

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """Do nothing: the load report names them."""

    def _check_initialization(self, loaded: set[str], model: set[str], file: set[str], misfits: list[str]) -> None:
        """Refuse weights of another network, which would initialize next to nothing; warn if some are missing."""
        part = {name for name in model if not name.endswith(COUNT)}
        part = {name for name in part if name.startswith("backbone.")} or part
        missing = part - loaded
        if part & {*misfits} or 2 * len(missing) > len(part):  # a pyramid or norms may be new
            raise self._refusal(
                f"it fits {len(part) - len(missing)} of the backbone's {len(part)} weights, e.g. not {min(missing)}; "
                f"it holds {', '.join(sorted(file)[:2]) or 'nothing'}, ...",
                "name weights of MODEL.BACKBONE, or a checkpoint of this model",
            )
        self.logger.info("%s holds no segmentation head: only the backbone is initialized", self._loading)
        if missing:
            self.logger.warning(
                "%s lacks %d of the backbone's %d weights, which stay random, e.g. %s",
                self._loading, len(missing), len(part), min(missing),
            )  # fmt: skip

    def _check_whole(self, incompatible: _IncompatibleKeys) -> None:
        shapes = [each for each in incompatible.incorrect_shapes if each[0] != EMPTY_WEIGHT]
        if {name for name, _, _ in shapes} == set(CLASS_HEAD):
            there, here = (shape[0] - 1 for shape in shapes[0][1:])
            raise self._refusal(
                f"it has {there} classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {here}",
                (f"set it to {there}, or " if self.require_head else "")
                + "to train a new class head, set TRANSFER.REINIT_CLASS_HEAD True",
            )
        problems = [f"{name} is {there} in the file and {here} in the model" for name, there, here in shapes]
        for place, names in (("file", incompatible.missing_keys), ("model", incompatible.unexpected_keys)):
            essential = [name for name in names if not name.startswith((ESTIMATOR, "criterion."))]
            problems += [f"{name} is not in the {place}" for name in essential if not name.endswith(COUNT)]
        if problems:
            message = f"it is of another architecture: {problems[0]}{_more(problems)}"
            raise self._refusal(message, "use the config that it was trained with")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


class _Reader(TMTCheckpointer):
    """Reads a checkpoint without a model: ``load`` returns its content."""

    def _load_model(self, checkpoint: Any) -> None:
        self._convert_ndarray_to_tensor(checkpoint["model"])
        _rename(checkpoint["model"])


def read_state(path: str) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint (path or URL) under its present names, on the CPU.

    Raises: as ``TMTCheckpointer.load``.
    """
    return _Reader(nn.Module()).load(path)["model"]


def refuse_another_estimator(path: str, folder: str | Path) -> None:
    """Refuse to resume if the initial checkpoint now holds another estimator than the run started with.

    T of training images would come from that file, T of all others from the run's checkpoint.

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
        here = fill_frozen_encoder(read_state(path))
        for name, value in there.items():
            if not name.startswith(ESTIMATOR) or name == SETTINGS:
                continue
            other = here.get(name)
            if other is not None and not torch.equal(value, other):
                message = f"--resume: its estimator is not the one of {file}"
                hint = "restore the file, or choose another OUTPUT_DIR"
                raise UserError(message, key="MODEL.WEIGHTS", value=path, hint=hint)
        return


def keep_weights(folder: str | Path) -> None:
    """Delete periodic checkpoints and the optimizer's state in the final one, of a run that has ended.

    It has no effect the second time, or without a checkpoint.

    Raises:
        UserError: the final checkpoint is damaged; no file was changed.
    """
    final = Path(folder) / f"{FINAL}.pth"
    if not final.is_file():
        return
    content = _Reader(nn.Module()).load(str(final))
    for path in Path(folder).rglob("model_*.pth"):  # first, to free space; those of alignment are in a subfolder
        if path != final and (path.name == final.name or _PERIODIC.fullmatch(path.name)):
            path.unlink(missing_ok=True)
    content.pop(METHOD_TRAINING, None)
    if "trainer" in content:
        content[ENDED_AFTER] = content.pop("trainer")["iteration"] + 1
        with atomic_write(final) as file:
            torch.save(content, file)
        logger.info("%s now holds weights only", final)


def ended_after(folder: str | Path) -> int | None:
    """Return the iterations of a run that has ended and of which only weights are kept; None for any other folder."""
    files = TMTCheckpointer(nn.Module(), str(folder)).resumable()
    if not files or files[0].stem != FINAL:
        return None
    try:
        return torch.load(files[0], map_location="cpu", weights_only=True, mmap=True).get(ENDED_AFTER)
    except Exception:  # damaged: an error when it is loaded
        return None


def _rename(weights: dict[str, Any]) -> None:
    """Replace the names of old official checkpoints by the present ones, in place."""
    renamed = upgrade_names(weights)
    for old, new in renamed.items():
        weights[new] = weights.pop(old)
    if renamed:
        logger.info("%d entries have names of an old official version, e.g. %s: renamed", len(renamed), min(renamed))

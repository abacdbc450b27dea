"""Files of a custom data set: images and labels that its patterns and lists match, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.layouts import Listing, find, pair
from tmt_d2.data.image_lists import listed_indices
from tmt_d2.data.reader import DataError, MissingDataError

PATTERN_KEYS = ("images", "labels", "unlabeled")


@dataclass(frozen=True)
class CustomSplit:
    """One split of a custom data set.

    Attributes:
        patterns: patterns below the data set's root by key of ``PATTERN_KEYS``: images and labels, or unlabeled, or
            all three.
        list_file: names the images of the split.
        subset: images without a label, and names in ``list_file`` without an image, are no error.
    """

    patterns: Mapping[str, Sequence[str]]
    list_file: Path | None = None
    subset: bool = False


@dataclass(frozen=True)
class CustomDataSet:
    """Content of the YAML file of a custom data set.

    Attributes:
        file: the YAML file, absolute.
        root: folder of the patterns, absolute, with symbolic links resolved; links below it may lead anywhere.
    """

    file: Path
    name: str
    root: Path
    splits: Mapping[str, CustomSplit]
    label_space: LabelSpace

    def listing(self, split: str) -> Listing:
        """Pair the files of one split.

        Raises:
            MissingDataError: no file matches a pattern.
            UserError: two files have the same name, or the list cannot be read or names an image that is missing.
        """
        content, key = self.splits[split], f"{self.file}: splits.{split}"
        files = {kind: self._find(f"{key}.{kind}", patterns) for kind, patterns in content.patterns.items()}
        absent: list[str] = []
        if content.list_file is not None:
            kind = "images" if "images" in files else "unlabeled"
            stems, paths = list(files[kind]), list(files[kind].values())
            names = [[stem] for stem in stems]
            indices, absent = listed_indices(
                f"{key}.list", content.list_file, paths, names, [self.root], content.subset
            )
            files[kind] = {stems[index]: paths[index] for index in indices}
            if kind == "images":
                files["labels"] = {stem: path for stem, path in files["labels"].items() if stem in files["images"]}
        listing = pair(files.get("images", {}), files.get("labels", {}))
        listing.absent, listing.subset = absent, content.subset
        unlabeled, labeled = files.get("unlabeled", {}), {image for image, _ in listing.pairs.values()}
        listing.unlabeled = {stem: path for stem, path in sorted(unlabeled.items()) if path not in labeled}
        for stem in listing.unlabeled.keys() & listing.pairs.keys():
            raise _same_name(f"{key}.unlabeled", stem, unlabeled[stem], listing.pairs[stem][0])
        intended = set(unlabeled.values())
        listing.images_alone = [path for path in listing.images_alone if path not in intended]
        return listing

    def _find(self, key: str, patterns: Sequence[str]) -> dict[str, str]:
        """Return stem -> path of the files that match one of the patterns."""
        files: dict[str, str] = {}
        for pattern in patterns:
            matched = find(self.root, pattern)
            if not matched:
                raise MissingDataError(f"no file matches it below {self.root}", key=key, value=pattern)
            for stem in sorted(files.keys() & matched.keys()):
                if files[stem] != matched[stem]:
                    raise _same_name(key, stem, files[stem], matched[stem])
            files |= matched
        return files


def _same_name(key: str, stem: str, *paths: str) -> DataError:
    return DataError(
        f"{' and '.join(paths)} both have the name {stem!r}",
        key=key,
        hint="capture the folder as well: {folder}/{stem}",
    )

"""Everything that can be said about the data of a configuration before it is trained on."""

import dataclasses
from collections.abc import Sequence

from input_pipeline.checks import Findings
from input_pipeline.doctor import duplicates, examinations
from input_pipeline.doctor.copies import content_codes
from input_pipeline.doctor.opening import open_dataset, open_pose_files
from input_pipeline.doctor.survey import Listing, Survey
from pgfl_jax.config import Config

_CHECKS = (
    examinations.preparation,
    examinations.images,
    examinations.training,
    examinations.protocols,
    examinations.pose_files,
    duplicates.within_splits,
    duplicates.test_images_in_training,
    duplicates.queries_in_galleries,
    duplicates.shared_identities,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the doctor saw and what it makes of it.

    Attributes:
        survey: the data.
        findings: errors, warnings and notes, one line each.
        listings: the files that they speak of.
    """

    survey: Survey
    findings: Findings
    listings: Sequence[Listing]


def diagnose(config: Config) -> Diagnosis:
    """Open the data of a configuration and look at everything; no error stops it.

    What is wrong with splits that the configuration does not use is a warning.
    """
    if "://" not in config.data.data_dir:
        # Everything is read once or twice: from the disk, so that no set is too large.
        data = dataclasses.replace(config.data, memory_gib=0.0)
        config = dataclasses.replace(config, data=data)
    findings, listings = Findings(), []
    poses = open_pose_files(config, findings)
    names = dict.fromkeys((config.data.dataset, *config.eval.datasets))
    datasets = [open_dataset(config, name, poses, findings) for name in names]
    splits = [split for dataset in datasets for split in dataset.splits.values()]
    codes = content_codes([split.digests for split in splits])
    survey = Survey(config, datasets, poses, dict(zip(splits, codes, strict=True)))
    for check in _CHECKS:
        for found in check(survey):
            if isinstance(found, Listing):
                listings.append(found)
            else:
                findings.add(found)
    # One pose file can fail alike with every split.
    findings.errors = list(dict.fromkeys(findings.errors))
    findings.warnings = list(dict.fromkeys(findings.warnings))
    return Diagnosis(survey, findings, listings)

import pytest

from input_pipeline.builders.names import named_set


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Market-1501-v15.09.15", "market1501"),
        ("market1501", "market1501"),
        ("DukeMTMC-reID.zip/DukeMTMC-reID", "dukemtmc_reid"),
        ("dukemtmcreid", "dukemtmc_reid"),
        ("Occluded_Duke", "occluded_duke"),
        ("Occluded-DukeMTMC-reID", "occluded_duke"),
        ("OccludedDuke", "occluded_duke"),
        ("occ_duke", "occluded_duke"),
        ("P-DukeMTMC-reid", "p_dukemtmc_reid"),
        ("P_DukeMTMC_reID", "p_dukemtmc_reid"),
        ("p-dukemtmc/test", "p_dukemtmc_reid"),
        ("Occluded_REID", "occluded_reid"),
        ("OccludedREID", "occluded_reid"),
        ("Occluded-ReID.zip", "occluded_reid"),
        ("Partial_REID", "partial_reid"),
        ("PartialREID.zip", "partial_reid"),
        ("Partial_iLIDS", "partial_ilids"),
        ("MSMT17_V2", "msmt17"),
        # The innermost name decides.
        ("duke/occluded/Market-1501", "market1501"),
        ("ICME2018_Occluded-Person-Reidentification_datasets/P-DukeMTMC-reid", "p_dukemtmc_reid"),
        ("ICME2018_Occluded-Person-Reidentification_datasets", None),
        ("datasets/people", None),
        ("", None),
    ],
)
def test_what_folders_and_archives_are_named_for(path, name):
    assert named_set(path) == name

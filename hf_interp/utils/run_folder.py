"""Names of the files in a run's folder."""

ADAPTER_NAME, ADAPTER_CONFIG_NAME = "adapter_model", "adapter_config.json"

LOCK_NAME = ".hf_interp.lock"
"""The file that a run holds while it is at work in its folder."""

PROGRESS_NAME = "progress.json"
"""How far a run is, or how far it came."""

CELL_NAME = "cell.json"
"""What came of one method with one seed of a comparison, in the folder of its run."""

INTERPOLATION_NAME = "interpolation.json"
"""The report on how an interpolated checkpoint came about, in its folder."""

CURVE_NAME = "curve.json"
CURVE_PLOT_NAME = "curve.png"
INTERPOLATED_NAME = "interpolated"
"""Folder of M_α inside that of the run."""

RESULTS_NAME = "results.json"
RUN_PLOT_NAME = "run.png"

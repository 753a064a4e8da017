"""The bundle that a committed run was made with."""

from fcdd import bundle
from fcdd.bundle import BundleSpec
from fcdd.errors import ConfigError
from schemas import RunRecord


def of_run(record: RunRecord) -> tuple[BundleSpec, bytes]:
    """The specification and the weights. Raises BundleError, or ConfigError when another bundle is there by now."""
    spec, weights = bundle.load(record.bundle)
    check_of_run(spec, record)
    return spec, weights


def check_of_run(spec: BundleSpec, record: RunRecord) -> None:
    """Raises ConfigError when this is not the bundle that the run was made with."""
    if spec.digest != record.bundle_digest:
        raise ConfigError(f"the bundle at {record.bundle} is not the one that run {record.run_id} used")

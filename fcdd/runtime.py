"""How the forward pass runs at scoring time; loads no torch, so that a wrong choice is found before anything starts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError
from fcdd.sample import Precision


class Runtime(BaseModel):
    """Library and precision; every allowed choice gives the same maps, within the tolerances of `fcdd.inference`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["torch", "openvino"] = Field("torch", description="library of the forward pass")
    precision: Precision = "float32"
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")

    def check(self) -> None:
        """Raises ConfigError for choices that contradict each other. Whether a precision does: `fcdd.sample`."""
        if self.precision == "tf32" and self.backend != "torch":
            raise ConfigError("tf32 is a precision of NVIDIA's GPUs, and OpenVINO computes on CPUs; use float32")
        if self.compile and self.backend != "torch":
            raise ConfigError("compile belongs to the backend torch")

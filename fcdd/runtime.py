"""How the forward pass runs at scoring time; loads no torch, so that a wrong choice is found before anything starts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError


class Runtime(BaseModel):
    """Library and precision; every allowed choice gives the same maps, within the tolerances of `fcdd.inference`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["torch", "openvino"] = Field("torch", description="library of the forward pass")
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")

    def check(self, network: str) -> None:
        """Raises ConfigError for a choice that this network cannot take."""
        # Whitening divides by the smallest deviations of the features: their rounding to 8 bits made maps of ELPV
        # cells 7 (trunk only) to 23 times too large.
        if self.precision == "bfloat16" and network.startswith("whitened:"):
            raise ConfigError(f"bfloat16 is too coarse for the whitened network {network!r}; use float32")
        if self.compile and self.backend != "torch":
            raise ConfigError("compile belongs to the backend torch")

"""RQ-VAE: an encoder, a residual quantiser and a decoder that learn together (TIGER, arXiv 2305.05065, section 3.1).

Shape letters: N items, B rows, D embedding, R components of the quantiser's space, Z latent, L levels, K codes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch

from models.semantic_ids.kmeans import fit_kmeans, nearest_first
from models.semantic_ids.rqvae_config import Gradient
from models.semantic_ids.spec import SemanticIdSpec, check_dimension
from models.semantic_ids.transform import Whitening
from models.semantic_ids.vector_quantisation import GRADIENTS, CodeLevel

CHUNK = 8192


class RqVaeOutput(NamedTuple):
    """What the network makes of a batch.

    Attributes:
        decoded_BR: Reconstruction.
        codes_BL: Codes.
        quantisation: Codebook and commitment losses of all levels, a mean over rows.
    """

    decoded_BR: torch.Tensor
    codes_BL: torch.Tensor
    quantisation: torch.Tensor


def _mlp(sizes: list[int]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [torch.nn.ReLU()] * (i > 0) + [torch.nn.Linear(inputs, outputs)]
    return torch.nn.Sequential(*layers)


class RqVaeNetwork(torch.nn.Module):
    """Encoder, code levels and decoder.

    Args:
        inputs: Width R of what is encoded.
        widths: Codes of each level.
        hidden: As in `RqVaeConfig`.
        latent: As in `RqVaeConfig`.
        commitment: As in `RqVaeConfig`.
        gradient: As in `RqVaeConfig`.
        revive_after: As in `RqVaeConfig`.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        *,
        hidden: tuple[int, ...],
        latent: int,
        commitment: float,
        gradient: Gradient,
        revive_after: int,
    ):
        super().__init__()
        self.gradient: Gradient = gradient
        self.latent = latent
        self.encoder = _mlp([inputs, *hidden, latent])
        self.decoder = _mlp([latent, *reversed(hidden), inputs])
        self.levels = torch.nn.ModuleList(
            CodeLevel(width, latent, commitment=commitment, revive_after=revive_after) for width in widths
        )

    def code_levels(self) -> list[CodeLevel]:
        """The levels, coarse to fine."""
        return [cast(CodeLevel, level) for level in self.levels]

    def forward(self, z_BR: torch.Tensor) -> RqVaeOutput:
        """Encodes, quantises level by level, and decodes the sum of the chosen codes."""
        encoded_BZ = self.encoder(z_BR)
        residual_BZ, loss, codes = encoded_BZ, encoded_BZ.new_zeros(()), []
        for level in self.code_levels():
            found = level(residual_BZ)
            residual_BZ, loss = residual_BZ - found.vector_BR, loss + found.loss
            codes.append(found.code_B)
        # Past all levels at once: a gradient past each of them would reach the encoder L times.
        total_BZ = GRADIENTS[self.gradient](encoded_BZ, (encoded_BZ - residual_BZ).detach())
        return RqVaeOutput(self.decoder(total_BZ), torch.stack(codes, 1), loss)

    @torch.no_grad()
    def start(self, z_NR: torch.Tensor, seed: int) -> None:
        """Starts every codebook with k-means of the residuals that the levels above leave of ``z_NR``."""
        residual_NZ = self.encoder(z_NR)
        for i, level in enumerate(self.code_levels()):
            found_KZ = torch.from_numpy(fit_kmeans(residual_NZ.numpy(), len(level.codes_KR), seed=seed + i))
            # Where there are fewer points than codes, the rest keeps its random start and is revived or never used.
            level.codes_KR[: len(found_KZ)] = found_KZ
            residual_NZ = residual_NZ - level.codes_KR[level.nearest(residual_NZ)]


class RqVae:
    """A trained RQ-VAE as a quantiser. It computes in float64, so that codes do not depend on the batch.

    Args:
        network: The trained network.
        whitening: From embeddings to the network's inputs and back.
        scale: Inputs are divided by it.
        arguments: Constructor arguments of the network.
    """

    method: ClassVar[str] = "rq_vae"

    def __init__(self, network: RqVaeNetwork, whitening: Whitening, scale: float, arguments: Mapping[str, Any]):
        self.network = network.double().eval()
        self.whitening, self.scale, self.arguments = whitening, scale, dict(arguments)

    @property
    def centroids(self) -> tuple[np.ndarray, ...]:
        """K x Z codes of each level, in the latent space."""
        return tuple(level.codes_KR.detach().float().numpy() for level in self.network.code_levels())

    @property
    def widths(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(level.codes_KR) for level in self.network.code_levels())

    def spec(self, version: str) -> SemanticIdSpec:
        """The form of the semantic IDs that this quantiser gives."""
        return SemanticIdSpec(self.widths, version)

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """See `Quantiser.encode`.

        Raises:
            ValueError: If the vectors have another dimension than the fitted ones.
        """
        check_dimension(x_ND, len(self.whitening.mean_D))
        codes_NL = np.empty((len(x_ND), len(self.widths)), np.int32)
        with torch.inference_mode():
            for at in range(0, len(x_ND), CHUNK):
                z_BR = torch.from_numpy(self.whitening.apply(x_ND[at : at + CHUNK]) / self.scale)
                residual_BZ = self.network.encoder(z_BR)
                for i, level in enumerate(self.network.code_levels()):
                    code_B = level.nearest(residual_BZ)
                    residual_BZ = residual_BZ - level.codes_KR[code_B]
                    codes_NL[at : at + CHUNK, i] = code_B.numpy()
        return codes_NL

    def last_codes(self, x_ND: np.ndarray, num: int) -> np.ndarray:
        """See `Quantiser.last_codes`."""
        codes_NL, levels = torch.from_numpy(self.encode(x_ND).astype(np.int64)), self.network.code_levels()
        with torch.inference_mode():
            residual_NZ = self.network.encoder(torch.from_numpy(self.whitening.apply(x_ND) / self.scale))
            for i, level in enumerate(levels[:-1]):
                residual_NZ = residual_NZ - level.codes_KR[codes_NL[:, i]]
        return nearest_first(residual_NZ.numpy(), levels[-1].codes_KR.detach().numpy(), num)

    def decode(self, codes_NL: np.ndarray, *, levels: int | None = None) -> np.ndarray:
        """See `Quantiser.decode`."""
        shown = self.network.code_levels()[:levels]
        parts = []
        with torch.inference_mode():
            for at in range(0, len(codes_NL), CHUNK):
                code_BL = torch.from_numpy(codes_NL[at : at + CHUNK].astype(np.int64))
                total_BZ = torch.zeros(len(code_BL), self.network.latent, dtype=torch.float64)
                for i, level in enumerate(shown):
                    total_BZ = total_BZ + level.codes_KR[code_BL[:, i]]
                parts.append(self.network.decoder(total_BZ).numpy() * self.scale)
        z_NR = np.concatenate(parts) if parts else np.zeros((0, self.whitening.forward_DR.shape[1]))
        return self.whitening.invert(z_NR)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON arguments that `from_state` takes."""
        weights = {k: v for k, v in self.network.state_dict().items() if v.is_floating_point()}
        # Trained in float32: nothing is lost.
        trained = {f"network.{name}": value.float().numpy() for name, value in weights.items()}
        return self.whitening.arrays() | trained, {"scale": self.scale, "network": self.arguments}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> "RqVae":
        """The quantiser that `state` described."""
        network = RqVaeNetwork(**arguments["network"])
        found = {k.removeprefix("network."): torch.from_numpy(v.copy()) for k, v in arrays.items() if "network." in k}
        network.load_state_dict(network.state_dict() | found)
        return cls(network, Whitening.from_arrays(arrays), arguments["scale"], arguments["network"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray tasks get it as arrays and arguments."""
        return RqVae.from_state, self.state()

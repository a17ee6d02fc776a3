import dataclasses

import numpy as np
import pytest
import torch

from models.semantic_ids.quantiser import Quantiser, restored
from models.semantic_ids.rqvae import RqVae, RqVaeNetwork
from models.semantic_ids.rqvae_config import RqVaeConfig
from models.semantic_ids.transform import fit_whitening
from models.semantic_ids.vector_quantisation import CodeLevel, rotation, straight_through
from tests.assets.clusters.seeding import anisotropic

SIZES = {"widths": [8, 8, 8], "hidden": [32], "latent": 8, "commitment": 0.25, "revive_after": 3}


def network(gradient="rotation", inputs=16, **changes):
    torch.manual_seed(0)
    return RqVaeNetwork(**{"inputs": inputs, "gradient": gradient} | SIZES | changes)


def householder(r, e):
    """The matrix of the definition: |e|/|r| (I - 2 w w' + 2 u_e u_r')."""
    u_r, u_e = r / r.norm(), e / e.norm()
    w = (u_r + u_e) / (u_r + u_e).norm()
    return e.norm() / r.norm() * (torch.eye(len(r)) - 2 * torch.outer(w, w) + 2 * torch.outer(u_e, u_r))


def test_the_rotation_trick_is_its_definition():
    torch.manual_seed(1)
    r, e, upstream = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6), torch.randn(5, 6)
    out = rotation(r, e)
    assert torch.allclose(out, e, atol=1e-5), "forward it is the code"
    out.backward(upstream)
    for row in range(5):
        matrix = householder(r[row].detach(), e[row])
        assert torch.allclose(matrix @ r[row].detach(), e[row], atol=1e-5)
        assert torch.allclose(r.grad[row], matrix.T @ upstream[row], atol=1e-5)
    # Angles to the code are kept: what the paper is about.
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(r.grad, r.detach()), cosine(upstream, e), atol=1e-5)


def test_straight_through_copies_the_gradient():
    r, e, upstream = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4, 3)
    out = straight_through(r, e)
    out.backward(upstream)
    assert torch.allclose(out, e) and torch.equal(r.grad, upstream)


@pytest.mark.parametrize("r", [[0.0, 0.0], [1.0, 0.0]])
def test_where_no_rotation_is_defined_the_gradient_is_copied(r):
    r = torch.tensor([r], requires_grad=True)
    out = rotation(r, torch.tensor([[-2.0, 0.0]]))
    out.backward(torch.tensor([[1.0, 2.0]]))
    assert torch.equal(out.detach(), torch.tensor([[-2.0, 0.0]])) and torch.equal(r.grad, torch.tensor([[1.0, 2.0]]))


def test_codes_get_their_gradient_from_the_codebook_loss_alone():
    net = network().train()
    out = net(torch.randn(32, 16))
    out.decoded_BR.sum().backward()
    assert all(level.codes_KR.grad is None for level in net.levels) and net.encoder[0].weight.grad.abs().sum() > 0
    net(torch.randn(32, 16)).quantisation.backward()
    assert all(level.codes_KR.grad.abs().sum() > 0 for level in net.levels)


def test_dead_codes_come_back_where_rows_are():
    torch.manual_seed(0)
    level = CodeLevel(4, 2, commitment=0.25, revive_after=2).train()
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).repeat(4, 1)
    with torch.no_grad():
        level.codes_KR.copy_(torch.tensor([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0], [90.0, 90.0]]))
    for _ in range(2):
        assert set(level(rows).code_B.tolist()) == {0}
    assert level.idle_K.tolist() == [0, 2, 2, 2]
    assert len(set(level(rows).code_B.tolist())) > 1, "the third batch revives"
    assert level.codes_KR.abs().max() <= 1
    never = CodeLevel(4, 2, commitment=0.25, revive_after=0).train()
    with torch.no_grad():
        never.codes_KR.copy_(torch.tensor([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0], [90.0, 90.0]]))
    for _ in range(5):
        assert set(never(rows).code_B.tolist()) == {0}
    level.eval()
    before = level.idle_K.clone()
    level(rows)
    assert torch.equal(level.idle_K, before), "evaluation counts nobody"


def test_codebooks_start_from_the_residuals():
    z = torch.from_numpy(anisotropic(300, 16)).float()
    random, started = network(), network()
    started.start(z, seed=0)
    with torch.no_grad():
        assert started.eval()(z).quantisation < 0.5 * random.eval()(z).quantisation
    again = network()
    again.start(z, seed=0)
    assert all(torch.equal(a.codes_KR, b.codes_KR) for a, b in zip(started.levels, again.levels, strict=True))


@pytest.fixture(scope="module")
def quantiser():
    x = anisotropic(300, 24)
    whitening = fit_whitening(x, strength=0.5, components=16)
    net = network()
    net.start(torch.from_numpy(whitening.apply(x)).float(), seed=0)
    return RqVae(net, whitening, 0.7, {"inputs": 16, "gradient": "rotation"} | SIZES), x


def test_it_is_a_quantiser_like_any_other(quantiser):
    found, x = quantiser
    assert isinstance(found, Quantiser) and found.widths == (8, 8, 8) and found.spec("v").levels == 3
    codes = found.encode(x)
    assert codes.shape == (300, 3) and codes.dtype == np.int32 and (codes < 8).all()
    assert (np.concatenate([found.encode(row[None]) for row in x[:20]]) == codes[:20]).all()
    assert found.decode(codes).shape == x.shape and found.encode(x[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="rebuild_clusters"):
        found.encode(np.zeros((2, 7), np.float32))


def test_state_restores_it(quantiser):
    import json

    found, x = quantiser
    arrays, arguments = found.state()
    back = restored("rq_vae", arrays, json.loads(json.dumps(arguments)))
    assert (back.encode(x) == found.encode(x)).all()
    assert np.array_equal(back.decode(back.encode(x)), found.decode(found.encode(x)))
    with pytest.raises(ValueError, match="newer release"):
        restored("rq_magic", arrays, arguments)


def test_bad_knobs_are_told():
    with pytest.raises(ValueError, match="straight_through or rotation"):
        RqVaeConfig(gradient="gumbel")
    with pytest.raises(ValueError, match="levels"):
        RqVaeConfig(widths=(4,))
    with pytest.raises(ValueError, match="0 to 1"):
        dataclasses.replace(RqVaeConfig(), whitening=-1)

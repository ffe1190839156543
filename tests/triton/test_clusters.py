"""The kernels of k-means: nearest landmarks, sums over clusters, and the sampler on them."""

import pytest
import torch
from support.strategies import normal

from softattn import KMeansLandmarks, eager, kernels
from softattn import triton as operators

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_landmark_is_nearer_than_the_one_that_is_found(dtype, padded, device):
    tokens, landmarks = (normal(2, 2, n, 5, seed=n).to(device, dtype) for n in (50, 37))
    masks = [None, None]
    if padded:
        masks = [torch.rand(2, n, device=device) < 0.4 for n in (50, 37)]
        tokens = tokens.masked_fill(masks[0][:, None, :, None], float("nan"))
        landmarks = landmarks.masked_fill(masks[1][:, None, :, None], 0)
    labels = operators.nearest_landmarks(tokens, landmarks, *masks)
    distances = torch.cdist(tokens.double(), landmarks.double()).square()
    if padded:
        assert torch.equal(labels == 37, masks[0][:, None].expand_as(labels))
        distances = distances.masked_fill(masks[1][:, None, None], torch.inf)
        distances = distances.masked_fill(masks[0][:, None, :, None], 0)
    found = distances.gather(-1, labels.clamp(max=36).unsqueeze(-1))
    assert (found.squeeze(-1) <= distances.amin(-1) + 1e-5).all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_places_on_a_line_come_with_the_labels(dtype, padded, device):
    # Products of coordinates this far from the origin would lose digits.
    far = 1000 if dtype == torch.float32 else 0
    tokens, landmarks = (far + normal(2, 2, n, 5, seed=n).to(device, dtype) for n in (50, 37))
    center, direction = (normal(2, 2, 1, 5, seed=i, dtype=torch.float32).to(device) for i in (1, 2))
    center += far
    masks, places = [None, None], ((tokens - center.double()) * direction).sum(-1)
    if padded:
        masks = [torch.rand(2, n, device=device) < 0.4 for n in (50, 37)]
        tokens = tokens.masked_fill(masks[0][:, None, :, None], float("nan"))
        places = places.masked_fill(masks[0][:, None], 0)
    for backend in (operators, eager):
        labels, found = backend.labels_and_places(tokens, landmarks, center, direction, *masks)
        assert torch.equal(labels, backend.nearest_landmarks(tokens, landmarks, *masks))
        torch.testing.assert_close(found, places.float(), rtol=1e-5, atol=1e-5)


def test_the_first_of_equally_near_landmarks_gets_a_token(device):
    tokens = normal(1, 1, 40, 4, seed=0, dtype=torch.float32).to(device)
    landmarks = tokens[:, :, :20].repeat_interleave(2, 2)
    labels = operators.nearest_landmarks(tokens[:, :, :20], landmarks, None, None)
    assert labels.flatten().tolist() == list(range(0, 40, 2))


@pytest.mark.parametrize("m", [1, 37])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_and_numbers_of_each_label(dtype, m, device):
    tokens = normal(2, 2, 50, 5, seed=0).to(device, dtype)
    labels = torch.randint(m + 1, (2, 2, 50), device=device)
    sums, numbers = operators.cluster_sums(tokens, labels, m)
    members = (labels.unsqueeze(-2) == torch.arange(m, device=device).unsqueeze(-1)).double()
    torch.testing.assert_close(sums, (members @ tokens.double()).float())
    assert torch.equal(numbers, members.sum(-1, keepdim=True).float())


@pytest.mark.parametrize("padded", [False, True])
def test_the_sampler_finds_the_landmarks_and_gradients_of_eager(device, padded):
    tokens = normal(2, 2, 60, 5, seed=0, dtype=torch.float32).to(device).requires_grad_()
    mask = torch.arange(60, device=device).expand(2, -1) >= 41 if padded else None
    results = []
    for impl in ("triton", "eager"):
        landmarks = KMeansLandmarks(20, 3, impl=impl)(tokens, (6, 10), mask)
        gradients = torch.autograd.grad(landmarks.square().sum(), tokens, create_graph=True)
        second = torch.autograd.grad(gradients[0].square().sum(), tokens)
        results.append((landmarks, *gradients, *second))
    for triton, plain in zip(*results, strict=True):
        torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_head(device):
    tokens = normal(2, 2, 40, 3, seed=0, dtype=torch.float32).to(device)
    tokens[1, 0, 4, 1] = float("nan")
    landmarks = KMeansLandmarks(20, impl="triton")(tokens)
    assert landmarks[1, 0].isnan().any()
    assert landmarks[0].isfinite().all() and landmarks[1, 1].isfinite().all()


def test_no_tokens(device):
    tokens = torch.zeros(2, 1, 0, 3, device=device)
    labels = torch.zeros(2, 1, 0, dtype=torch.long, device=device)
    sums, numbers = operators.cluster_sums(tokens, labels, 4)
    assert (sums == 0).all() and sums.shape == (2, 1, 4, 3)
    assert (numbers == 0).all()
    landmarks = torch.zeros(2, 1, 4, 3, device=device)
    assert operators.nearest_landmarks(tokens, landmarks, None, None).shape == (2, 1, 0)
    line = torch.ones(2, 1, 1, 3, device=device)
    for found in operators.labels_and_places(tokens, landmarks, line, line, None, None):
        assert found.shape == (2, 1, 0)


def test_opcheck(device):
    tokens, landmarks = (normal(2, 1, n, 3, seed=n, dtype=torch.float32).to(device) for n in (7, 4))
    torch.library.opcheck(operators.nearest_landmarks, (tokens, landmarks, None, None))
    line = landmarks[:, :, :1].detach()
    torch.library.opcheck(operators.labels_and_places, (tokens, landmarks, line, line, None, None))
    labels = eager.nearest_landmarks(tokens, landmarks, None, None)
    torch.library.opcheck(operators.clusters.sums_and_numbers, (tokens, labels, 4))
    assert kernels.cluster_sums(tokens, labels, 4).shape == (2, 1, 4, 4)

"""Matrices with a name in the literature on pseudo-inverses, from their definitions, in float64."""

import math

import torch
from support.strategies import normal
from torch import Tensor


def _arange(n: int) -> Tensor:
    """1, 2, …, n."""
    return torch.arange(1, n + 1, dtype=torch.float64)


def _row_and_column(n: int) -> tuple[Tensor, Tensor]:
    """i of every row (n, 1) and j of every column (1, n), from 1."""
    return _arange(n)[:, None], _arange(n)[None, :]


def with_spectrum(rows: int, columns: int, spectrum: list[float], seed: int = 0) -> Tensor:
    """A matrix with these singular values between random orthonormal bases."""
    rank = len(spectrum)
    left = torch.linalg.qr(normal(rows, rows, seed=seed))[0][:, :rank]
    right = torch.linalg.qr(normal(columns, columns, seed=seed + 1))[0][:, :rank]
    return left * torch.tensor(spectrum, dtype=torch.float64) @ right.mT


def hilbert(n: int) -> Tensor:
    """1 / (i + j − 1)."""
    i, j = _row_and_column(n)
    return 1 / (i + j - 1)


def lotkin(n: int) -> Tensor:
    """A Hilbert matrix whose first row is 1."""
    a = hilbert(n)
    a[0] = 1
    return a


def cauchy(n: int) -> Tensor:
    """1 / (x_i + y_j), with x_i = i and y_j = j − ½."""
    i, j = _row_and_column(n)
    return 1 / (i + j - 0.5)


def vandermonde(n: int) -> Tensor:
    """Powers 0 … n − 1 of n points between −1 and 1."""
    return torch.linalg.vander(torch.linspace(-1, 1, n, dtype=torch.float64))


def vandermonde_of_positive_points(n: int) -> Tensor:
    """Powers 0 … n − 1 of n points between 0 and 1."""
    return torch.linalg.vander(_arange(n) / n)


def chebyshev_vandermonde(n: int) -> Tensor:
    """Chebyshev polynomials 0 … n − 1 at n equidistant points."""
    angle = torch.linspace(-1, 1, n, dtype=torch.float64).acos()
    return torch.cos(angle[:, None] * torch.arange(n, dtype=torch.float64))


def kahan(n: int, angle: float = 1.2) -> Tensor:
    """Upper triangular, diag(1, s, s², …) times a matrix of 1 and −c, c = cos and s = sin."""
    i, j = _row_and_column(n)
    sine = torch.tensor(math.sin(angle), dtype=torch.float64)
    above = torch.where(j > i, -math.cos(angle), 0.0) + (i == j)
    return sine ** (i - 1) * above


def lehmer(n: int) -> Tensor:
    """min(i, j) / max(i, j)."""
    i, j = _row_and_column(n)
    return torch.minimum(i, j) / torch.maximum(i, j)


def pascal(n: int) -> Tensor:
    """Binomial coefficients (i + j − 2 over i − 1)."""
    rows = [[math.comb(i + j, i) for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64)


def frank(n: int) -> Tensor:
    """Upper Hessenberg with n + 1 − max(i, j), and determinant 1."""
    i, j = _row_and_column(n)
    return torch.where(i <= j + 1, n + 1 - torch.maximum(i, j), 0.0)


def moler(n: int) -> Tensor:
    """min(i, j) − 2, and i on the diagonal."""
    i, j = _row_and_column(n)
    return torch.where(i == j, i, torch.minimum(i, j) - 2)


def min_of_indices(n: int) -> Tensor:
    """min(i, j)."""
    i, j = _row_and_column(n)
    return torch.minimum(i, j)


def greatest_common_divisors(n: int) -> Tensor:
    """gcd(i, j)."""
    rows = [[math.gcd(i, j) for j in range(1, n + 1)] for i in range(1, n + 1)]
    return torch.tensor(rows, dtype=torch.float64)


def redheffer(n: int) -> Tensor:
    """1 where j = 1 or i divides j."""
    i, j = _row_and_column(n)
    return ((j == 1) | (j % i == 0)).double()


def hadamard(order: int) -> Tensor:
    """Sylvester's, 2^order rows of ±1."""
    a = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(order):
        a = torch.cat([torch.cat([a, a], 1), torch.cat([a, -a], 1)])
    return a


def cosine_transform(n: int) -> Tensor:
    """cos(π (i − 1) (j − ½) / n)."""
    i, j = _row_and_column(n)
    return torch.cos(math.pi * (i - 1) * (j - 0.5) / n)


def toeplitz(column: list[float], row: list[float]) -> Tensor:
    """Constant along diagonals, from its first column and its first row."""
    n = len(column)
    rows = [[column[i - j] if i >= j else row[j - i] for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64)


def symmetric_toeplitz(column: list[float]) -> Tensor:
    """Constant along diagonals and symmetric."""
    return toeplitz(column, column)


def prolate(n: int, width: float = 0.25) -> Tensor:
    """sin(2π w k) / (π k) on diagonal k: eigenvalues cluster at 0 and 1."""
    return symmetric_toeplitz(
        [2 * width] + [math.sin(2 * math.pi * width * k) / (math.pi * k) for k in range(1, n)]
    )


def grcar(n: int) -> Tensor:
    """−1 below the diagonal, 1 on it and on the three above."""
    row = [1.0] * 4 + [0.0] * (n - 4)
    return toeplitz([1.0, -1.0] + [0.0] * (n - 2), row)


def circulant(n: int) -> Tensor:
    """Rows 1 … n, each shifted by one more."""
    return torch.stack([_arange(n).roll(i) for i in range(n)])


def clement(n: int) -> Tensor:
    """Tridiagonal with k and n − k beside a zero diagonal; singular for odd n."""
    k = _arange(n - 1)
    return torch.diag(k, 1) + torch.diag(n - k, -1)


def wilkinson(n: int) -> Tensor:
    """Tridiagonal with |k| on the diagonal and 1 beside it."""
    k = (_arange(n) - (n + 1) / 2).abs()
    ones = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(k) + torch.diag(ones, 1) + torch.diag(ones, -1)


def parter(n: int) -> Tensor:
    """1 / (i − j + ½): singular values close to π."""
    i, j = _row_and_column(n)
    return 1 / (i - j + 0.5)


def ris(n: int) -> Tensor:
    """½ / (n − i − j + 3/2): eigenvalues cluster at ±π/2."""
    i, j = _row_and_column(n)
    return 0.5 / (n - i - j + 1.5)


def rosser() -> Tensor:
    """Eigenvalues that are equal, nearly equal, zero, small and opposite."""
    rows = [
        [611, 196, -192, 407, -8, -52, -49, 29],
        [196, 899, 113, -192, -71, -43, -8, -44],
        [-192, 113, 899, 196, 61, 49, 8, 52],
        [407, -192, 196, 611, 8, 44, 59, -23],
        [-8, -71, 61, 8, 411, -599, 208, 208],
        [-52, -43, 49, 44, -599, 411, 208, 208],
        [-49, -8, 8, 59, 208, 208, 99, -911],
        [29, -44, 52, -23, 208, 208, -911, 99],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def magic_square() -> Tensor:
    """4 × 4, of rank 3."""
    rows = [[16, 2, 3, 13], [5, 11, 10, 8], [9, 7, 6, 12], [4, 14, 15, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def unit_upper_triangular(n: int) -> Tensor:
    """1 on the diagonal and −1 above: one singular value near 2^−n."""
    i, j = _row_and_column(n)
    return (i == j).double() - (j > i).double()


def lauchli(n: int, small: float) -> Tensor:
    """A row of ones over small · I: one large singular value, the others ``small``."""
    return torch.cat([torch.ones(1, n, dtype=torch.float64), small * torch.eye(n).double()])


def forsythe(n: int) -> Tensor:
    """A Jordan block of 0 with √ε in the corner."""
    a = jordan(n, 0.0)
    a[-1, 0] = math.sqrt(torch.finfo(torch.float64).eps)
    return a


def jordan(n: int, eigenvalue: float) -> Tensor:
    """One Jordan block."""
    ones = torch.ones(n - 1, dtype=torch.float64)
    return eigenvalue * torch.eye(n, dtype=torch.float64) + torch.diag(ones, 1)


def path_laplacian(n: int) -> Tensor:
    """Of a path of n nodes; its rows sum to 0."""
    a = symmetric_toeplitz([2.0, -1.0] + [0.0] * (n - 2))
    a[0, 0] = a[-1, -1] = 1
    return a


def path_incidence(n: int) -> Tensor:
    """Differences of neighbours, (n − 1, n)."""
    eye = torch.eye(n, dtype=torch.float64)
    return eye[1:] - eye[:-1]


def companion(n: int) -> Tensor:
    """Of the polynomial with coefficients 1 … n."""
    ones = torch.ones(n - 1, dtype=torch.float64)
    a = torch.diag(ones, -1)
    a[0] = -_arange(n)
    return a


def arrow(n: int) -> Tensor:
    """Ones in the first row and column, i on the diagonal."""
    a = torch.diag(_arange(n))
    a[0], a[:, 0] = 1, 1
    return a


def gaussian_gram(n: int, d: int) -> Tensor:
    """k(x, y) = exp(−‖x − y‖² / (2 √d)) of n normal points of d features."""
    points = normal(n, d, seed=0)
    return torch.exp(-torch.cdist(points, points).square() / (2 * math.sqrt(d)))


def heat_kernel(n: int) -> Tensor:
    """Blur of n points on a line by a Gaussian of three spacings."""
    i, j = _row_and_column(n)
    return torch.exp(-(((i - j) / 3) ** 2) / 2)


def graded(n: int, smallest: float) -> Tensor:
    """A random matrix whose rows shrink geometrically to ``smallest``."""
    rows = torch.logspace(0, math.log10(smallest), n, dtype=torch.float64)
    return rows[:, None] * normal(n, n, seed=0)


def diagonal(*entries: float) -> Tensor:
    """A diagonal matrix."""
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def nearly_singular(distance: float) -> Tensor:
    """2 × 2, ``distance`` from one of rank 1."""
    return torch.tensor([[1.0, 1.0], [1.0, 1.0 + distance]], dtype=torch.float64)


def repeated_columns() -> Tensor:
    """Four columns, each three times."""
    return normal(15, 4, seed=0).repeat(1, 3)


NAMED_MATRICES: dict[str, Tensor] = {
    "hilbert 3": hilbert(3),
    "hilbert 6": hilbert(6),
    "hilbert 8": hilbert(8),
    "hilbert 12": hilbert(12),
    "hilbert 30": hilbert(30),
    "hilbert 8, tiny": 1e-30 * hilbert(8),
    "hilbert 8, huge": 1e30 * hilbert(8),
    "hilbert 12, half of its columns": hilbert(12)[:, :6],
    "lotkin 8": lotkin(8),
    "cauchy 10": cauchy(10),
    "vandermonde 8": vandermonde(8),
    "vandermonde 20": vandermonde(20),
    "vandermonde of positive points 15": vandermonde_of_positive_points(15),
    "chebyshev-vandermonde 12": chebyshev_vandermonde(12),
    "kahan 12": kahan(12),
    "kahan 40": kahan(40),
    "kahan 20, flat": kahan(20, 0.6),
    "lehmer 12": lehmer(12),
    "pascal 5": pascal(5),
    "pascal 10": pascal(10),
    "frank 8": frank(8),
    "frank 14": frank(14),
    "moler 14": moler(14),
    "min(i, j) 20": min_of_indices(20),
    "gcd 15": greatest_common_divisors(15),
    "redheffer 12": redheffer(12),
    "hadamard 16": hadamard(4),
    "cosine transform 16": cosine_transform(16),
    "prolate 20": prolate(20),
    "kac-murdock-szego 20": symmetric_toeplitz([0.9**k for k in range(20)]),
    "grcar 20": grcar(20),
    "circulant 9": circulant(9),
    "clement 10": clement(10),
    "clement 11": clement(11),
    "wilkinson 21": wilkinson(21),
    "parter 12": parter(12),
    "ris 12": ris(12),
    "rosser": rosser(),
    "magic square": magic_square(),
    "unit upper triangular 12": unit_upper_triangular(12),
    "unit upper triangular 40": unit_upper_triangular(40),
    "läuchli 7, 1e-3": lauchli(7, 1e-3),
    "läuchli 7, 1e-9": lauchli(7, 1e-9),
    "forsythe 8": forsythe(8),
    "jordan 10": jordan(10, 0.5),
    "shift 8": jordan(8, 0.0),
    "laplacian of a path 12": path_laplacian(12),
    "incidence of a path 12": path_incidence(12),
    "companion 9": companion(9),
    "arrow 12": arrow(12),
    "gram of 49 points in 2 dimensions": gaussian_gram(49, 2),
    "gram of 30 points in 1 dimension": gaussian_gram(30, 1),
    "gram of 49 points in 32 dimensions": gaussian_gram(49, 32),
    "heat kernel 40": heat_kernel(40),
    "graded to 1e-4": graded(10, 1e-4),
    "graded to 1e-12": graded(10, 1e-12),
    "halving 40": with_spectrum(40, 40, [0.5**i for i in range(40)]),
    "thirds 40": with_spectrum(40, 40, [0.3**i for i in range(40)]),
    "slowly falling 60": with_spectrum(70, 60, [0.8**i for i in range(60)]),
    "two groups": with_spectrum(30, 20, [1.0] * 10 + [1e-3] * 4),
    "two groups, far apart": with_spectrum(20, 30, [1.0] * 10 + [1e-10] * 4),
    "diagonal with gaps": diagonal(1.0, 1e-2, 1e-4),
    "diagonal with wide gaps": diagonal(1.0, 1e-6, 1e-12),
    "nearly singular": nearly_singular(1e-3),
    "very nearly singular": nearly_singular(1e-9),
    "identity": torch.eye(7, dtype=torch.float64),
    "identity, tiny": 1e-30 * torch.eye(7, dtype=torch.float64),
    "ones": torch.ones(7, 5, dtype=torch.float64),
    "zero": torch.zeros(4, 3, dtype=torch.float64),
    "1 × 1": diagonal(3.0),
    "1 × 1, zero": diagonal(0.0),
    "one row": normal(1, 9, seed=0),
    "one column": normal(9, 1, seed=0),
    "tall": normal(30, 8, seed=0),
    "wide": normal(8, 30, seed=0),
    "square": normal(30, 30, seed=0),
    "rank 6": normal(20, 6, seed=0) @ normal(6, 15, seed=1),
    "repeated columns": repeated_columns(),
}

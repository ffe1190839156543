"""What a file imports."""

import ast
from pathlib import Path

import softattn

# The public modules. All other public names are imported from the package itself.
MODULES = {"distributed", "flops", "integrations", "plots", "reference"}


def imports_of(path: Path) -> set[str]:
    """The full names of all that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def private_imports_of(path: Path) -> set[str]:
    """What a file imports from softattn beside its public interface."""
    public = MODULES | set(softattn.__all__) | {"__version__"}
    ours = [name.split(".") for name in imports_of(path) if name.startswith("softattn.")]
    return {".".join(parts) for parts in ours if parts[1] not in public}

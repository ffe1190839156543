"""Trains or evaluates a segmenter on images with maps of labels.

    python -m examples.segmentation.train --data PATH --config \
        examples/segmentation/configs/upernet_soft_norm_small.yaml
    python -m examples.segmentation.train --data PATH --eval --checkpoint best.safetensors

PATH has the layout of ADE20K: images/training/NAME.jpg, annotations/training/NAME.png, the same
under validation/, and objectInfo150.txt. Every line of the recipe can also be an option, such as
``--epochs 60``. ``torchrun`` or ``accelerate launch`` uses several GPUs and machines. A run that
was stopped continues from where it was when the same command is given again.
"""

from examples.dense import train
from examples.segmentation.problem import Segmentation


def main(arguments: list[str] | None = None) -> None:
    """Trains or evaluates as the command line says, or prints what is wrong with it."""
    train.main(Segmentation(), (__doc__ or "").splitlines()[0], arguments)


if __name__ == "__main__":
    main()

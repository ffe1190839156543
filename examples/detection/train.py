"""Trains or evaluates a detector on images with boxes, and masks for Mask R-CNN.

    python -m examples.detection.train --data PATH --config \
        examples/detection/configs/mask_rcnn_soft_norm_tiny.yaml
    python -m examples.detection.train --data PATH --eval --checkpoint best.safetensors

PATH has the layout of COCO: annotations/instances_train*.json, instances_val*.json, and the images
in folders that are named as the files, such as train2017/ or images/train2017/. Every line of the
recipe can also be an option, such as ``--epochs 24``. ``torchrun`` or ``accelerate launch`` uses
several GPUs and machines. A run that was stopped continues from where it was when the same command
is given again.
"""

from examples.dense import train
from examples.detection.problem import Detection


def main(arguments: list[str] | None = None) -> None:
    """Trains or evaluates as the command line says, or prints what is wrong with it."""
    train.main(Detection(), (__doc__ or "").splitlines()[0], arguments)


if __name__ == "__main__":
    main()

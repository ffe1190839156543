"""Draws what a segmenter finds in pictures.

``python -m examples.segmentation.predict IMAGE … --checkpoint best.safetensors``
"""

from examples.dense.predict import predict, predict_parser
from examples.segmentation.problem import Segmentation


def main(arguments: list[str] | None = None) -> None:
    """Draws as the command line says, or prints what is wrong with it."""
    parser = predict_parser("segmentation", (__doc__ or "").splitlines()[0])
    options = parser.parse_args(arguments)
    predict(Segmentation(), options.images, options.checkpoint, options.out)


if __name__ == "__main__":
    main()

"""Draws what a detector finds in pictures.

``python -m examples.detection.predict IMAGE … --checkpoint best.safetensors``
"""

from examples.dense.predict import predict, predict_parser
from examples.detection.problem import Detection


def main(arguments: list[str] | None = None) -> None:
    """Draws as the command line says, or prints what is wrong with it."""
    parser = predict_parser("detection", (__doc__ or "").splitlines()[0])
    parser.add_argument("--score", type=float, default=0.5, help="of objects that are drawn")
    options = parser.parse_args(arguments)
    predict(Detection(options.score), options.images, options.checkpoint, options.out)


if __name__ == "__main__":
    main()

"""The user's own pose model as an ONNX file."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from input_pipeline.keypoints import NUM_JOINTS
from input_pipeline.poses.decode import decode_heatmaps, decode_simcc
from pgfl_jax.errors import UserError

# Suffix of a model in another format → the format, and what converts it.
_CONVERTERS = {
    ".tflite": ("TensorFlow Lite", "tf2onnx (--tflite, --inputs-as-nchw, --outputs-as-nchw)"),
    ".pt": ("PyTorch", "torch.onnx.export"),
    ".pth": ("PyTorch", "torch.onnx.export"),
}
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class PoseModel:
    """An ONNX file with one input (N, 3, H, W) and heat maps or SimCC scores of 17 joints.

    Attributes:
        path: the file.
        size: (H, W) of its input in pixels.
        batch: images per run if the model fixes it, else None.
    """

    def __init__(
        self, path: Path, input_size: tuple[int, int] | None = None, *, udp: bool = False
    ) -> None:
        """Load a model.

        Args:
            path: the ONNX file.
            input_size: (H, W), for a model whose input size is open.
            udp: convention of heat maps, see :func:`decode_heatmaps`.

        Raises:
            UserError: onnxruntime is missing, or the file is not such a model.
        """
        self.path = path
        self._udp = udp
        self._session = _load(path)
        inputs = self._session.get_inputs()
        given = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        shape = inputs[0].shape
        if len(inputs) != 1 or inputs[0].type not in _INPUT_TYPES or len(shape) != 4:
            raise UserError(f"{path}: needs one float input (N, 3, H, W), but has {given}")
        if isinstance(shape[1], int) and shape[1] != 3:
            raise UserError(f"{path}: needs 3 channels first, (N, 3, H, W), but has {given}")
        self._input = inputs[0]
        self.batch = shape[0] if isinstance(shape[0], int) else None
        self.size = self._input_size(input_size)

    def _input_size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """(H, W) from the model or, if its size is open, from the option."""
        fixed = self._input.shape[2:]
        if wanted is None:
            if not all(isinstance(length, int) for length in fixed):
                raise UserError(f"{self.path}: its input size is open: give --input-size H W")
            return fixed[0], fixed[1]
        for length, own in zip(wanted, fixed, strict=True):
            if isinstance(own, int) and own != length:
                raise UserError(f"{self.path}: its input is {fixed[0]}×{fixed[1]}: no --input-size")
        return wanted

    @property
    def estimator(self) -> str:
        """The file's name and the start of its SHA-256."""
        with self.path.open("rb") as file:
            return f"{self.path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"

    def __call__(
        self, inputs: Float32[np.ndarray, "images 3 height width"]
    ) -> tuple[Float[np.ndarray, "images 17 2"], Float[np.ndarray, "images 17"]]:
        """Positions and confidences.

        Args:
            inputs: (n, 3, H, W) float32; at most ``batch`` images if the model fixes it.

        Returns:
            (n, 17, 2) x, y in pixels of the input, (n, 17) confidences in [0, 1].

        Raises:
            UserError: the outputs are not heat maps or SimCC scores of 17 joints, or not finite.
        """
        count = len(inputs)
        if self.batch is not None:
            inputs = np.pad(inputs, ((0, self.batch - count), (0, 0), (0, 0), (0, 0)))
        outputs = [output[:count].astype(np.float32) for output in self._run(inputs)]
        if not all(np.isfinite(output).all() for output in outputs):
            raise UserError(f"{self.path}: its output is not finite: check --mean and --std")
        if len(outputs) == 1:
            return decode_heatmaps(outputs[0], self.size, udp=self._udp)
        x, y = self._in_order(outputs)
        return decode_simcc(x, y, self.size)

    def _run(self, inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs: one array (N, 17, h, w), or two arrays (N, 17, L)."""
        feed = {self._input.name: inputs.astype(_INPUT_TYPES[self._input.type])}
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:  # onnxruntime's errors share no class of their own
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path}: does not run on {inputs.shape}: {reason}") from None
        ranks = [np.ndim(output) for output in outputs]
        if ranks not in ([4], [3, 3]) or any(o.shape[1] != NUM_JOINTS for o in outputs):
            names = [output.name for output in self._session.get_outputs()]
            shapes = [np.shape(output) for output in outputs]
            given = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
            raise UserError(
                f"{self.path}: needs heat maps (N, 17, h, w), or SimCC scores (N, 17, Lx) and "
                f"(N, 17, Ly), but puts out {given}{_remedy(shapes)}"
            )
        return outputs

    def _in_order(self, outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """SimCC scores, x before y; both have the same number of bins per pixel."""
        height, width = self.size
        for x, y in (outputs, outputs[::-1]):
            if x.shape[-1] * height == y.shape[-1] * width:
                return x, y
        lengths = " and ".join(str(output.shape[-1]) for output in outputs)
        raise UserError(f"{self.path}: SimCC scores of {lengths} bins do not suit its input size")


def _remedy(shapes: list[tuple[int, ...]]) -> str:
    """What to do about outputs of these shapes, as the end of a sentence; empty if unknown."""
    if len(shapes) != 1:
        return ""
    (shape,) = shapes
    if len(shape) == 4 and shape[3] == NUM_JOINTS:
        return ": heat maps with channels last; export them with channels first"
    if len(shape) == 3 and shape[1] == NUM_JOINTS:
        if shape[2] <= 3:
            return ": coordinates; export the model without its decoder"
        return ": SimCC scores of one axis; export the model with both outputs"
    return ""


def _load(path: Path):
    """The model in an onnxruntime session."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "estimating poses needs onnxruntime: pip install -c constraints.txt -e '.[poses]'"
        ) from None
    if not path.is_file():
        raise UserError(f"--model={path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    available = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in available]
    try:
        return onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:  # onnxruntime's errors share no class of their own
        if path.suffix.lower() in _CONVERTERS:
            kind, converter = _CONVERTERS[path.suffix.lower()]
            problem = f"a {kind} file, not ONNX: convert it with {converter}"
        else:
            problem = f"not a model that can be run: {str(error).splitlines()[0]}"
        raise UserError(f"--model={path}: {problem}") from None

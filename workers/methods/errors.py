"""Errors of the math. The pipeline, which knows the layer's name, turns them into failures of a cell."""


class MethodError(ArithmeticError):
    """Numbers that cannot be quantized: NaN, Inf, an indefinite Hessian, a scale outside its dtype's range."""


class IndefiniteHessianError(MethodError):
    """The Hessian has no Cholesky factor, even after every step of the ladder."""

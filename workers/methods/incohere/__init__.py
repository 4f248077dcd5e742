"""Slot incohere: the basis a linear is rounded in. Each module has `make_basis(weight, hessian, incohere, seed)`."""

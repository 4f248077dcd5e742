"""`ptqbench kernels`: which version of each operation runs here."""

import sys

import kernels

sys.stdout.writelines(f"{operation:18} {version}\n" for operation, version in kernels.status().items())

"""`ptqbench kernels`: which version of each operation runs here."""

import kernels

for operation, version in kernels.status().items():
    print(f"{operation:18} {version}")

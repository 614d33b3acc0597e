"""Data products: what each calls the canonical variables, one file each.

A new product is one file with a ``Product`` in it and one registration: a row of ``PRODUCTS`` in
``climafuse/registry.py``, or from outside the package ``PRODUCTS.register("my_product", MY_PRODUCT)``.
``examples/own_product.py`` is one.
"""

from __future__ import annotations

from climafuse.data.products.base import Conversion, Product, get_product, recognized

__all__ = ["Conversion", "Product", "get_product", "recognized"]

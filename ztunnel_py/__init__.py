# SPDX-License-Identifier: Apache-2.0
"""Istio ambient node proxy."""

__version__ = "0.1.0"

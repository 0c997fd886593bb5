# SPDX-License-Identifier: Apache-2.0
"""Calls: gRPC over our own TLS."""

# SPDX-License-Identifier: Apache-2.0
"""Explains HBONE: the readable engine."""

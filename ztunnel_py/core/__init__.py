# SPDX-License-Identifier: Apache-2.0
"""Moves bytes in C, and decides nothing."""

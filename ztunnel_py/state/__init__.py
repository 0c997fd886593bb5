# SPDX-License-Identifier: Apache-2.0
"""Remembers the mesh: facts, lookups."""

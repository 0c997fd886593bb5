# SPDX-License-Identifier: Apache-2.0
"""Hears the mesh's configuration."""

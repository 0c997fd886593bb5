# SPDX-License-Identifier: Apache-2.0
"""Measures proxies side by side."""

# SPDX-License-Identifier: Apache-2.0
"""Welcomes: pods that come and go."""

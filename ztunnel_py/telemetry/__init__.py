# SPDX-License-Identifier: Apache-2.0
"""Tells: log lines, metrics text."""

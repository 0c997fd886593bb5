# SPDX-License-Identifier: Apache-2.0
"""Judges connections: pure verdicts, reasons."""

# SPDX-License-Identifier: Apache-2.0
"""Enrols: pods of machines without a CNI."""

# SPDX-License-Identifier: Apache-2.0
"""Shows an operator what is."""

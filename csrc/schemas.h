// Raised with every change in registration.cpp, as is SCHEMAS in puma_plugin/ops/loader.py: Python files and libraries of
// different sources must not meet.
#pragma once

namespace puma {

constexpr int kSchemas = 9;

}  // namespace puma

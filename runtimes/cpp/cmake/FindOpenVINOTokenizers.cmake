# Finds OpenVINO Tokenizers: the imported target OpenVINOTokenizers::OpenVINOTokenizers. OpenVINO_DIR is where OpenVINO's
# own OpenVINOConfig.cmake lies, OPENVINO_TOKENIZERS_ROOT the prefix of the other. Both come in wheels of these names.
# Link openvino::runtime first: it brings the libraries that the other looks for and would not find by itself.

find_package(OpenVINO QUIET COMPONENTS Runtime)
find_library(OPENVINO_TOKENIZERS_LIBRARY openvino_tokenizers HINTS ${OPENVINO_TOKENIZERS_ROOT} PATH_SUFFIXES lib lib64)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OpenVINOTokenizers REQUIRED_VARS OPENVINO_TOKENIZERS_LIBRARY OpenVINO_FOUND)
mark_as_advanced(OPENVINO_TOKENIZERS_LIBRARY)

if(OpenVINOTokenizers_FOUND AND NOT TARGET OpenVINOTokenizers::OpenVINOTokenizers)
  add_library(OpenVINOTokenizers::OpenVINOTokenizers UNKNOWN IMPORTED)
  set_target_properties(OpenVINOTokenizers::OpenVINOTokenizers PROPERTIES
    IMPORTED_LOCATION "${OPENVINO_TOKENIZERS_LIBRARY}")
endif()

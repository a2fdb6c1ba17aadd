{
  # node-gyp only passes on: CMakeLists.txt is the one description of the build.
  "targets": [
    {
      "target_name": "quantaria_native",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          # Never there, so that the action always runs: CMake knows what is stale.
          "outputs": ["<(PRODUCT_DIR)/.always"],
          "action": ["node", "scripts/build-native.cjs", "--outdir", "<(PRODUCT_DIR)", "--config", "<(CONFIGURATION_NAME)"],
        }
      ],
    }
  ]
}

# Sluice: `make` prints what can be made. CMake and Ninja do the work underneath.
# SPDX-License-Identifier: Apache-2.0
BUILD ?= build
MODEL ?= models/pebble
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
ARGS ?=
CMAKE_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help deps deps-test build serve chat test check bench fuzz format install uninstall clean

help:
	@echo 'make serve     install what is missing, build, serve $(MODEL) on 127.0.0.1:8000'
	@echo 'make chat      the same, and talk to it in the terminal'
	@echo 'make test      the same set-up, then every test'
	@echo 'make build     the binary, $(BUILD)/sluice, and the library'
	@echo 'make bench     throughput and latency of $(MODEL) on this machine'
	@echo 'make install   to $(PREFIX): sluice, libsluice, sluice.h, sluice.pc'
	@echo 'make check     all that CI runs (.ci/run; about 20 minutes on 2 cores)'
	@echo 'make fuzz      the fuzz targets, a minute each'
	@echo 'make format    clang-format on every source'
	@echo 'make clean     remove $(BUILD)'
	@echo
	@echo 'MODEL=DIR picks another model, ARGS="--port 8001" adds flags, JOBS=N limits compilers.'

deps:
	@tools/deps.sh build

deps-test:
	@tools/deps.sh test

build: deps
	@[ -f $(BUILD)/build.ninja ] || cmake -S . -B $(BUILD) -G Ninja -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_ARGS)
	@ninja -C $(BUILD) -j$(JOBS) sluice sluice_shared

serve: build
	@exec $(BUILD)/sluice serve $(MODEL) $(ARGS)

chat: build
	@exec $(BUILD)/sluice chat $(MODEL) $(ARGS)

# Two tests at a time: some of them start a server and measure what its clients see.
test: deps-test
	@[ -f $(BUILD)/build.ninja ] || cmake -S . -B $(BUILD) -G Ninja -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_ARGS)
	@ninja -C $(BUILD) -j$(JOBS)
	@ctest --test-dir $(BUILD) -j2 --output-on-failure --no-tests=error $(ARGS)

check:
	@.ci/run

bench: build
	$(BUILD)/sluice bench throughput $(MODEL) --num-prompts 64 --input-len 128 --output-len 128 $(ARGS)
	$(BUILD)/sluice bench latency $(MODEL) --num-iters 5 --num-iters-warmup 1 $(ARGS)

fuzz:
	@tools/fuzz.sh 60

format:
	@tools/check_format.sh --fix

install: build
	@cmake --install $(BUILD) --prefix $(PREFIX)

uninstall:
	@[ ! -f $(BUILD)/install_manifest.txt ] || xargs rm -vf < $(BUILD)/install_manifest.txt

clean:
	@rm -rf $(BUILD)

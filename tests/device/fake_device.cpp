// What torch asks of a CUDA device beyond its kernels, answered by a device that does nothing. On it FakeTensorMode
// runs backward passes and makes generators in a torch that was built without CUDA.
#include <new>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device only(c10::DeviceType::CUDA, 0);

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return only; }
  c10::Device getDevice() const override { return only; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, only); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, only); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};

struct Generator : at::CPUGeneratorImpl {
  Generator() { device_ = only; }
};

struct Hooks : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
};

Guard guard;
auto& registered = c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];

// torch makes its hooks once and for all, perhaps long before a test wants others: these take their place in memory.
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
at::CUDAHooksInterface* hooks() { return const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks()); }

}  // namespace

extern "C" void install() {
  registered.store(&guard);
  new (hooks()) Hooks();
}

extern "C" void uninstall() {
  registered.store(nullptr);
  new (hooks()) at::CUDAHooksInterface();
}

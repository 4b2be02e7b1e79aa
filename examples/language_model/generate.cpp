// Writes text with the language model that train.py saved, then trains it by one step. No Python.
//
//   generate ARCHIVE OPERATOR_LIBRARY [OPTION VALUE]...        # --help lists the options
//
// The archive calls torch_ext::attention by name; loading the operator library registers that name,
// for the forward and, through autograd, for the backward.

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/script.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

struct Options {
  bool help = false;
  std::string archive;
  std::string library;
  std::string prompt = "def attention(query, key, value):\n";
  uint64_t sample_bytes = 300;
  double temperature = 0.7;
  uint64_t seed = 0;
  uint16_t threads = static_cast<uint16_t>(at::get_num_threads());
  std::string lesson =
      "Attention compares every query with every key and returns a mean of the values, in which\n"
      "the values whose keys are most like the query have the largest weights.\n";
  double learning_rate = 0.05;
};

constexpr std::string_view kUsage =
    "usage: generate ARCHIVE OPERATOR_LIBRARY [OPTION VALUE]...; --help lists the options\n";

void print_help() {
  const Options defaults;
  std::cout << kUsage
            << "\nWrites text with a language model, then trains the model by one step.\n\n"
            << "  ARCHIVE            model.pt, saved by train.py\n"
            << "  OPERATOR_LIBRARY   libtorch_ext.so\n"
            << "  --prompt TEXT      start of the sample (the first line of a Python function)\n"
            << "  --sample-bytes N   length of the sample (" << defaults.sample_bytes << ")\n"
            << "  --temperature T    of the sample (" << defaults.temperature << ")\n"
            << "  --seed N           of the sample (" << defaults.seed << ")\n"
            << "  --lesson TEXT      what the step is trained on (a sentence about attention)\n"
            << "  --learning-rate R  of the step (" << defaults.learning_rate << ")\n"
            << "  --threads N        processor cores to use (" << defaults.threads << ")\n";
}

template <typename Number>
Number parse_number(std::string_view name, std::string_view text) {
  Number number{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc() && rest == end) return number;
  const char* const needed =
      std::is_floating_point_v<Number> ? " needs a number" : " needs a whole number, at least 0";
  throw std::invalid_argument(std::string(name) + needed + " and not too large, but got '" +
                              std::string(text) + "'");
}

void set_option(Options& options, std::string_view name, const std::string& text) {
  if (name == "--prompt") {
    options.prompt = text;
  } else if (name == "--sample-bytes") {
    options.sample_bytes = parse_number<uint64_t>(name, text);
  } else if (name == "--temperature") {
    options.temperature = parse_number<double>(name, text);
  } else if (name == "--seed") {
    options.seed = parse_number<uint64_t>(name, text);
  } else if (name == "--lesson") {
    options.lesson = text;
  } else if (name == "--learning-rate") {
    options.learning_rate = parse_number<double>(name, text);
  } else if (name == "--threads") {
    options.threads = parse_number<uint16_t>(name, text);
  } else {
    throw std::invalid_argument("unknown option " + std::string(name));
  }
}

bool is_positive(double number) { return number > 0 && std::isfinite(number); }

void check(const Options& options) {
  if (options.prompt.empty()) throw std::invalid_argument("--prompt needs at least one byte");
  if (options.lesson.size() < 2) throw std::invalid_argument("--lesson needs at least two bytes");
  if (options.threads == 0) throw std::invalid_argument("--threads must be above 0");
  if (!is_positive(options.temperature)) {
    throw std::invalid_argument("--temperature must be above 0 and finite");
  }
  if (!is_positive(options.learning_rate)) {
    throw std::invalid_argument("--learning-rate must be above 0 and finite");
  }
  for (const std::string& path : {options.archive, options.library}) {
    if (!std::filesystem::is_regular_file(path)) throw std::invalid_argument("no file " + path);
  }
}

Options parse_options(std::span<const char* const> arguments) {
  Options options;
  std::vector<std::string> paths;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--help" || argument == "-h") {
      options.help = true;
      return options;
    }
    if (!argument.starts_with("--")) {
      paths.emplace_back(argument);
    } else if (i + 1 < arguments.size()) {
      set_option(options, argument, arguments[++i]);
    } else {
      throw std::invalid_argument(std::string(argument) + " needs a value");
    }
  }
  if (paths.size() != 2) throw std::invalid_argument("expected an archive and an operator library");
  options.archive = paths[0];
  options.library = paths[1];
  check(options);
  return options;
}

// The library registers its operators while it is loaded, and stays loaded.
void load_operators(const std::string& path) {
  const std::string absolute = std::filesystem::absolute(path);  // dlopen searches for bare names
  if (dlopen(absolute.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) {
    throw std::runtime_error("cannot load the operator library: " + std::string(dlerror()));
  }
}

torch::jit::Module load_model(const std::string& path) {
  try {
    return torch::jit::load(path);
  } catch (const c10::Error& error) {
    throw std::runtime_error("cannot load the model archive " + path + ": " +
                             error.what_without_backtrace());
  }
}

// (1, length) int64.
at::Tensor as_tensor(std::string_view text) {
  at::Tensor bytes = at::empty({1, static_cast<int64_t>(text.size())}, at::kLong);
  for (size_t i = 0; i < text.size(); ++i) {
    bytes.data_ptr<int64_t>()[i] = static_cast<unsigned char>(text[i]);
  }
  return bytes;
}

// Draws bytes one after another from softmax(logits / temperature), and prints each.
void generate(torch::jit::Module& model, const Options& options) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(options.seed);
  const auto context = static_cast<size_t>(model.attr("context").toInt());
  std::string text = options.prompt;
  std::cout << text;
  for (uint64_t i = 0; i < options.sample_bytes; ++i) {
    const size_t start = text.size() > context ? text.size() - context : 0;
    const at::Tensor input = as_tensor(std::string_view(text).substr(start));
    const at::Tensor logits = model.forward({input}).toTensor().select(/*dim=*/1, /*index=*/-1);
    const at::Tensor probability = (logits / options.temperature).softmax(-1);
    text += static_cast<char>(probability.multinomial(1).item<int64_t>());
    std::cout << text.back() << std::flush;
  }
  std::cout << "\n";
}

// Mean cross-entropy in nats per byte: every byte of text, (1, N), predicts the next one.
at::Tensor loss_of(torch::jit::Module& model, const at::Tensor& text) {
  const int64_t targets = text.size(1) - 1;
  const at::Tensor logits = model.forward({text.narrow(1, 0, targets)}).toTensor();
  return at::cross_entropy_loss(logits.squeeze(0), text[0].narrow(0, 1, targets));
}

// One step of gradient descent on text; returns the loss before and after it.
std::pair<double, double> train_one_step(torch::jit::Module& model, const at::Tensor& text,
                                         double learning_rate) {
  const at::Tensor before = loss_of(model, text);
  before.backward();
  const torch::NoGradGuard no_grad;
  for (at::Tensor weight : model.parameters()) {
    weight.sub_(weight.grad(), /*alpha=*/learning_rate);
  }
  return {before.item<double>(), loss_of(model, text).item<double>()};
}

bool run(const Options& options) {
  at::set_num_threads(options.threads);
  load_operators(options.library);
  torch::jit::Module model = load_model(options.archive);
  generate(model, options);

  const at::Tensor lesson = as_tensor(options.lesson);
  const auto [before, after] = train_one_step(model, lesson, options.learning_rate);
  std::cout << "one training step in C++: loss " << before << " -> " << after
            << " nats per byte on the same " << options.lesson.size() << " bytes\n";
  if (after < before) return true;
  std::cerr << "error: the loss did not go down\n";
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  std::optional<Options> options;
  try {
    options = parse_options({arguments + 1, static_cast<size_t>(count - 1)});
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n" << kUsage;
    return 2;
  }
  if (options->help) {
    print_help();
    return 0;
  }
  try {
    return run(*options) ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}

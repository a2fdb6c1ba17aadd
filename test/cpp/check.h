#pragma once

// The C++ tests' own small framework:
//   TEST("packing four bits and unpacking gives the codes back") { CHECK_EQ(unpack(pack(codes)), codes); }
// A failed CHECK is counted and the test goes on; an exception ends its test.

#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace quantaria::test {

struct Test {
  std::string name;
  const char* file;
  std::function<void()> body;
};

/// All tests, in the order in which the files were linked.
inline std::vector<Test>& registry() {
  static std::vector<Test> tests;
  return tests;
}

/// Failed checks of the running test.
inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(std::string name, const char* file, std::function<void()> body) {
    registry().push_back({std::move(name), file, std::move(body)});
  }
};

inline void report(const char* file, int line, std::string_view message) {
  ++failures();
  std::cerr << "  " << file << ":" << line << ": " << message << "\n";
}

template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(17);
  if constexpr (sizeof(T) == 1 && requires { text << int{value}; }) {
    text << int{value};  // (u)int8_t would be printed as a character
  } else if constexpr (requires { text << value; }) {
    text << value;
  } else if constexpr (requires { value.begin(), value.end(); }) {
    text << "{";
    for (const auto& item : value) text << " " << show(item);
    text << " }";
  } else {
    text << "(a value that cannot be printed)";
  }
  return text.str();
}

template <class A, class B>
void check_equal(const A& actual, const B& expected, const char* expression, const char* file, int line) {
  if (actual == expected) return;
  report(file, line, std::string(expression) + " is " + show(actual) + ", expected " + show(expected));
}

template <class E, class Body>
void check_throws(Body&& body, const char* expression, const char* file, int line) {
  try {
    body();
  } catch (const E&) {
    return;
  }
  report(file, line, std::string(expression) + " did not throw");
}

}  // namespace quantaria::test

#define QUANTARIA_JOIN_(a, b) a##b
#define QUANTARIA_JOIN(a, b) QUANTARIA_JOIN_(a, b)
#define QUANTARIA_TEST(name, function)                                                                 \
  static void function();                                                                              \
  static const ::quantaria::test::Registration QUANTARIA_JOIN(function, _registration){name, __FILE__, \
                                                                                       function};      \
  static void function()

#define TEST(name) QUANTARIA_TEST(name, QUANTARIA_JOIN(test_, __LINE__))
#define CHECK(condition)                                                                          \
  do {                                                                                            \
    if (!(condition)) ::quantaria::test::report(__FILE__, __LINE__, #condition " does not hold"); \
  } while (false)
#define CHECK_EQ(actual, expected) \
  ::quantaria::test::check_equal((actual), (expected), #actual, __FILE__, __LINE__)
#define CHECK_THROWS(exception, expression) \
  ::quantaria::test::check_throws<exception>([&] { (void)(expression); }, #expression, __FILE__, __LINE__)

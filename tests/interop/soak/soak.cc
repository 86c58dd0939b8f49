// A stock gRPC C++ producer of tiny messages: several ProduceStreams on one connection, acks read at once or slowly.
//
//   soak ADDRESS TOPIC STREAMS MESSAGES eager|slow
//
// Prints the number of acknowledged messages; exits with 1 and a sentence when an ack is missing or out of order.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "ringlog/v1/log.grpc.pb.h"

namespace v1 = ringlog::v1;

// The pauses of a slow reader: before its first ack, and after each so many.
constexpr std::chrono::seconds kPauseFirst{1};
constexpr int kPauseEvery = 500;
constexpr std::chrono::milliseconds kPause{25};

[[noreturn]] void fail(const std::string& sentence) {
  std::cerr << sentence << std::endl;
  std::_Exit(1);
}

void produce(v1::Log::Stub& log, const std::string& topic, int stream, int messages, bool slow) {
  grpc::ClientContext context;
  auto call = log.ProduceStream(&context);
  std::thread sender([&] {
    for (int n = 0; n < messages; n++) {
      v1::ProduceStreamRequest request;
      request.set_topic(topic);
      request.add_records()->set_value(std::string(1 + n % 60, static_cast<char>(stream)));
      // False says that the stream has ended; Finish has the reason.
      if (!call->Write(request)) return;
    }
    call->WritesDone();
  });
  if (slow) std::this_thread::sleep_for(kPauseFirst);
  uint64_t next = 0;
  int acked = 0;
  v1::ProduceStreamResponse ack;
  while (call->Read(&ack)) {
    if (ack.base_offset() < next || ack.count() != 1) {
      fail("stream " + std::to_string(stream) + ": offset " + std::to_string(ack.base_offset()) + " is acknowledged behind " +
           std::to_string(next));
    }
    next = ack.base_offset() + 1;
    if (slow && acked % kPauseEvery == 0) std::this_thread::sleep_for(kPause);
    acked++;
  }
  sender.join();
  const grpc::Status status = call->Finish();
  if (!status.ok() || acked != messages) {
    fail("stream " + std::to_string(stream) + " ended after " + std::to_string(acked) + " of " + std::to_string(messages) +
         " acks: " + std::to_string(status.error_code()) + " " + status.error_message());
  }
}

int main(int argc, char** argv) {
  if (argc != 6) fail("usage: soak ADDRESS TOPIC STREAMS MESSAGES eager|slow");
  const int streams = std::stoi(argv[3]), messages = std::stoi(argv[4]);
  const bool slow = std::string(argv[5]) == "slow";
  const auto log = v1::Log::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  std::vector<std::thread> threads;
  for (int stream = 0; stream < streams; stream++) {
    threads.emplace_back([&, stream] { produce(*log, argv[2], stream, messages, slow); });
  }
  for (auto& thread : threads) thread.join();
  std::cout << streams * messages << std::endl;
}

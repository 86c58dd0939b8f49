// A stock grpc-go producer of tiny messages: several ProduceStreams on one connection, acks read at once or slowly.
//
//	soak ADDRESS TOPIC STREAMS MESSAGES eager|slow
//
// Prints the number of acknowledged messages; exits with 1 and a sentence when an ack is missing or out of order.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"

	v1 "ringlog/v1"
)

// The pauses of a slow reader: before its first ack, and after each so many.
const (
	pauseFirst = time.Second
	pauseEvery = 500
	pause      = 25 * time.Millisecond
)

func main() {
	if len(os.Args) != 6 {
		fail("usage: soak ADDRESS TOPIC STREAMS MESSAGES eager|slow")
	}
	streams, messages := number(os.Args[3]), number(os.Args[4])
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), grpc.WithBlock())
	check(err)
	done := make(chan error, streams)
	for stream := 0; stream < streams; stream++ {
		go func(stream int) {
			done <- produce(v1.NewLogClient(connection), os.Args[2], stream, messages, os.Args[5] == "slow")
		}(stream)
	}
	for stream := 0; stream < streams; stream++ {
		check(<-done)
	}
	fmt.Println(streams * messages)
}

func produce(log v1.LogClient, topic string, stream, messages int, slow bool) error {
	call, err := log.ProduceStream(context.Background())
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- send(call, topic, stream, messages) }()
	if slow {
		time.Sleep(pauseFirst)
	}
	next := uint64(0)
	for acked := 0; ; acked++ {
		ack, err := call.Recv()
		if err == io.EOF && acked == messages {
			return <-sent
		}
		if err != nil {
			return fmt.Errorf("stream %d ended after %d of %d acks: %w", stream, acked, messages, err)
		}
		if ack.BaseOffset < next || ack.Count != 1 {
			return fmt.Errorf("stream %d: offset %d and %d records are acknowledged behind %d", stream, ack.BaseOffset, ack.Count, next)
		}
		next = ack.BaseOffset + 1
		if slow && acked%pauseEvery == 0 {
			time.Sleep(pause)
		}
	}
}

func send(call v1.Log_ProduceStreamClient, topic string, stream, messages int) error {
	for n := 0; n < messages; n++ {
		value := make([]byte, 1+n%60)
		for at := range value {
			value[at] = byte(stream)
		}
		request := &v1.ProduceStreamRequest{Topic: topic, Records: []*v1.Record{{Value: value}}}
		// EOF says that the stream has ended; Recv has the reason.
		if err := call.Send(request); err != nil {
			return err
		}
	}
	return call.CloseSend()
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(sentence string) {
	fmt.Fprintln(os.Stderr, sentence)
	os.Exit(1)
}

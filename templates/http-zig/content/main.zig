//! A CGI program: the request arrives in environment variables and on standard input, the
//! answer leaves on standard output, first its headers, then an empty line, then its body.

const std = @import("std");

pub fn main(init: std.process.Init) !void {
    var buffer: [1024]u8 = undefined;
    var output = std.Io.File.stdout().writer(init.io, &buffer);
    try output.interface.print("Content-Type: text/plain\n\n", .{});
    try output.interface.print("Hello from {s}!\n", .{"{{project-name}}"});
    try output.interface.flush();
}

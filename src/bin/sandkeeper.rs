//! The daemon and the command line.

fn main() -> std::process::ExitCode {
    sandkeeper::surface::cli::main()
}
